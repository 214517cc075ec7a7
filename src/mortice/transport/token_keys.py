"""Keys and certificates of both ends of an encrypted lane, derived from the token that they share."""

import hashlib
import hmac
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FROM, UNTIL = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)  # clocks do not matter


def certificate(token: str, side: str) -> bytes:
    """PEM; the same bytes wherever it is made."""
    key = _key(token, side)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"mortice kv {side}")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, FROM, UNTIL)
    return builder.sign(key, None).public_bytes(serialization.Encoding.PEM)


def private_key(token: str, side: str) -> bytes:
    """PEM, PKCS8, not encrypted."""
    return _key(token, side).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _key(token: str, side: str) -> Ed25519PrivateKey:
    seed = hmac.digest(token.encode(), f"mortice kv {side}".encode(), hashlib.sha256)
    return Ed25519PrivateKey.from_private_bytes(seed)
