"""Where TLS of a guest ends on the host: an authority of this home that its guests trust, and a stream over a flow.

Only connections to hosts with a secret end here. The authority's key never leaves the home, and no other program trusts it.
"""

import asyncio
import contextlib
import datetime
import os
import ssl
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mortice.sandbox.home import Home

GUEST_BUNDLE = "/home/user/.mortice/authorities.pem"
GUEST_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
)
_DAY = datetime.timedelta(days=1)
_PRIVATE = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class Stream(Protocol):
    """Both ends of one connection of a guest, in the clear."""

    async def read(self) -> bytes:
        """Empty at its end."""
        ...

    async def write(self, data: bytes) -> None: ...


class Authority:
    """Makes certificates for hosts. Made at the first use, kept in the home, readable by its owner only."""

    def __init__(self, home: Home) -> None:
        path = home.root / "egress-authority.pem"
        with home.lock():
            if not path.exists():
                _write_private(path, _new_authority())
        data = path.read_bytes()
        self._key = _ec_key(data)
        self._certificate = x509.load_pem_x509_certificate(data)
        self._contexts: dict[str, ssl.SSLContext] = {}

    def bundle(self) -> bytes:
        """What guests are to trust: this authority, and those that the host trusts."""
        usual = ssl.get_default_verify_paths().cafile
        others = Path(usual).read_bytes() if usual else b""
        return self._certificate.public_bytes(serialization.Encoding.PEM) + others

    def context(self, host: str) -> ssl.SSLContext:
        """A server's, for one name; HTTP/1.1 only."""
        if host not in self._contexts:
            self._contexts[host] = self._new_context(host)
        return self._contexts[host]

    def _new_context(self, host: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(host, key.public_key(), issuer=self._certificate.subject, days=365)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            os.write(fd, key.private_bytes(*_PRIVATE) + certificate.public_bytes(serialization.Encoding.PEM))
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        return context


class TlsEnd:
    """TLS as a server over a stream that carries it."""

    def __init__(self, carrier: Stream, context: ssl.SSLContext, first: bytes) -> None:
        self._carrier = carrier
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._incoming.write(first)
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._sending = asyncio.Lock()

    async def handshake(self) -> None:
        """Raises OSError if the guest hangs up, trusts another authority or speaks no TLS."""
        while True:
            try:
                self._object.do_handshake()
                await self._send()
                return
            except ssl.SSLWantReadError:
                await self._send()
                data = await self._carrier.read()
                if not data:
                    raise ConnectionError("the guest hung up in the middle of the handshake") from None
                self._incoming.write(data)

    async def read(self) -> bytes:
        """See `Stream.read`."""
        while True:
            try:
                return self._object.read(65536)
            except ssl.SSLWantReadError:
                data = await self._carrier.read()
                if not data:
                    return b""
                self._incoming.write(data)
            except ssl.SSLZeroReturnError:
                return b""

    async def write(self, data: bytes) -> None:
        """See `Stream.write`."""
        if data:
            self._object.write(data)
            await self._send()

    async def end(self) -> None:
        """Say that nothing more will come."""
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        await self._send()

    async def _send(self) -> None:
        async with self._sending:  # records must leave in the order in which they were made
            data = self._outgoing.read()
            if data:
                await self._carrier.write(data)


def upstream_context() -> ssl.SSLContext:
    """To the real host: checked by the host's own authorities, HTTP/1.1 only."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _new_authority() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Mortice sandbox egress")])
    certificate = (
        _builder("Mortice sandbox egress", key.public_key(), issuer=name, days=3650)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    return key.private_bytes(*_PRIVATE) + certificate.public_bytes(serialization.Encoding.PEM)


def _builder(
    name: str, key: ec.EllipticCurvePublicKey, *, issuer: x509.Name, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + days * _DAY)
    )


def _ec_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(data, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _write_private(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    part.rename(path)
