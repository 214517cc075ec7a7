"""The tcp lane beyond a host: the same language within TLS 1.3, with keys made from the token that all workers share.

Either side's key and certificate are derived from the token, so that both know both: each trusts exactly the other's, and a
stranger can show neither. Session keys are fresh for every connection (ephemeral Diffie-Hellman): who learns the token later
cannot read what was recorded. Records of 16 KiB pass through buffers of OpenSSL: what `wire.Link` moves without a copy is
copied once here.
"""

import contextlib
import ipaddress
import os
import select
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from typing import Literal

from mortice.transport import wire
from mortice.transport.errors import PeerGone, TransferError

Side = Literal["client", "server"]
Encryption = Literal["auto", "on", "off"]


def is_sealed(encrypt: Encryption, address: str) -> bool:
    """Whether a block server that listens on this numeric address speaks TLS: `auto`, where it can be reached from beyond
    the host. Both ends ask this of the same address."""
    if encrypt != "auto":
        return encrypt == "on"
    try:
        return not ipaddress.ip_address(address).is_loopback
    except ValueError:
        return True


def seal(token: str, side: Side) -> ssl.SSLContext:
    """What this side of a connection shows, and whom it believes."""
    from mortice.transport.token_keys import (
        certificate,
        private_key,
    )  # only who leaves the host needs cryptography

    protocol = ssl.PROTOCOL_TLS_SERVER if side == "server" else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # who it is, is who has the key
    context.verify_mode = ssl.CERT_REQUIRED
    if side == "server":
        context.num_tickets = 0
    other: Side = "client" if side == "server" else "server"
    context.load_verify_locations(cadata=certificate(token, other).decode())
    with _as_file(certificate(token, side) + private_key(token, side)) as path:
        context.load_cert_chain(path)
    return context


class SealedLink(wire.Link):
    """One end of an encrypted connection. `handshake` comes first."""

    def __init__(self, sock: socket.socket, stall_s: float, context: ssl.SSLContext) -> None:
        server = context.protocol == ssl.PROTOCOL_TLS_SERVER
        super().__init__(sock, stall_s)
        self._tls = context.wrap_socket(sock, server_side=server, do_handshake_on_connect=False)
        self._sock = self._tls

    def handshake(self) -> None:
        """Prove each other. The time limit is for all of it. Raises TransferError if the peer is not one of ours."""
        deadline = time.monotonic() + self._stall_s
        self._tls.settimeout(0.0)
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._await(select.POLLIN, deadline)
                except ssl.SSLWantWriteError:
                    self._await(select.POLLOUT, deadline)
        except ssl.SSLCertVerificationError as error:
            raise TransferError("the peer does not know the token") from error
        except OSError as error:
            raise PeerGone(f"no encrypted connection: {error.strerror or error}") from error
        self._tls.settimeout(self._stall_s)

    def receive_into(self, data: memoryview, *, whole: bool = False) -> None:
        filled, deadline = 0, time.monotonic() + self._stall_s
        while filled < len(data):
            try:
                count = self._tls.recv_into(data[filled:])
            except TimeoutError as error:
                raise PeerGone(f"no bytes from the peer for {self._stall_s:g} s") from error
            except OSError as error:
                raise PeerGone(f"connection lost: {error.strerror or error}") from error
            if not count:
                raise PeerGone("the peer closed the connection")
            filled += count
            if whole and filled < len(data) and time.monotonic() > deadline:
                raise PeerGone(f"the peer did not end its frame in {self._stall_s:g} s")

    def wait(self) -> bool:
        """Wait, however long, for the peer to say something or to close: the next `receive` tells which."""
        try:
            if not self._tls.pending():
                poll = select.poll()
                poll.register(self._tls, select.POLLIN)
                poll.poll()
            return True
        except (OSError, ValueError):
            return False

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):
            # The plain socket's: SSLSocket.shutdown would let a thread that reads go on with what is not decrypted.
            socket.socket.shutdown(self._tls, socket.SHUT_RDWR)

    def _await(self, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._tls, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
            raise PeerGone(f"the peer did not introduce itself in {self._stall_s:g} s")


@contextlib.contextmanager
def _as_file(secret: bytes) -> Iterator[str]:
    """The ssl module takes keys from files only: one in memory where the system has them, else one of this user's alone."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("mortice-kv", os.MFD_CLOEXEC)
        try:
            os.write(fd, secret)
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(secret)
            file.flush()
            yield file.name
