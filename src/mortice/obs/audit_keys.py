"""The log's keys: Ed25519 (RFC 8032). The public one checks heads that only the host's private one can sign."""

import hashlib
import os
import time
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PRIVATE, PUBLIC = "signing.key", "signing.pub"


class SigningKey:
    """The private key of a log, made at first use; its file has mode 0600 and lies beside the log."""

    def __init__(self, folder: Path) -> None:
        seed = _seed(folder / PRIVATE)
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.salt = hashlib.sha256(b"salt of hidden values" + seed).digest()[:16]
        public = self._key.public_key().public_bytes_raw().hex()
        path = folder / PUBLIC
        if not path.exists():
            part = folder / f".{PUBLIC}.{os.getpid()}"
            part.write_text(public + "\n")
            part.rename(path)

    def sign(self, chain: str, seq: int, digest: str) -> str:
        """Signature over what a spine record states, as hex."""
        return self._key.sign(_statement(chain, seq, digest)).hex()


class PublicKey:
    """Checks heads; `hex_key` is 64 hexadecimal digits. Raises ValueError for another thing."""

    def __init__(self, hex_key: str) -> None:
        self._key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(hex_key.strip()))

    def verifies(self, chain: str, seq: int, digest: str, signature: str) -> bool:
        """Whether the signature is this key's over that head."""
        try:
            self._key.verify(bytes.fromhex(signature), _statement(chain, seq, digest))
        except (InvalidSignature, ValueError):
            return False
        return True


def public_key(folder: Path) -> PublicKey | None:
    """The key that lies beside a log, where there is one. Kept elsewhere it also tells a log that was made anew."""
    path = folder / PUBLIC
    return PublicKey(path.read_text()) if path.exists() else None


def _statement(chain: str, seq: int, digest: str) -> bytes:
    return f"mortice audit head\n{chain}\n{seq}\n{digest}".encode()


def _seed(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        for _ in range(200):
            seed = path.read_bytes()
            if len(seed) == 32:
                return seed
            time.sleep(0.01)  # another process is writing it
        raise ValueError(f"{path} does not hold 32 bytes; the log cannot be signed") from None
    seed = os.urandom(32)
    with os.fdopen(fd, "wb") as file:
        file.write(seed)
        file.flush()
        os.fsync(fd)
    return seed
