"""Who may speak with a cluster from another host: whoever knows its token, encrypted both ways.

CurveZMQ (rfc.zeromq.org/spec/26) authenticates by public keys. Both sides' key pairs are made from the token, which itself
never travels: a stranger knows neither the server's key, without which no handshake begins, nor the client's, without
which none ends.
"""

import hashlib
import hmac
from pathlib import Path

import zmq
from zmq.utils import z85

from mortice.specs.errors import RequestError

SHORTEST_TOKEN = 16


def read_token(path: str | Path) -> str:
    """The first line of a token file. Raises RequestError if it cannot be had or is too short to be a secret."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise RequestError(f"cannot read {path}: {reason}", param="token_file") from error
    token = lines[0].strip() if lines else ""
    if len(token) < SHORTEST_TOKEN:
        raise RequestError(
            f"the token in {path} has fewer than {SHORTEST_TOKEN} characters: "
            "make one with `openssl rand -hex 32`",
            param="token_file",
        )
    return token


def key_pair(token: str, side: str) -> tuple[bytes, bytes]:
    """(public, secret) in Z85 of the `server` or the `client`."""
    secret = z85.encode(hmac.digest(token.encode(), f"mortice workers {side}".encode(), hashlib.sha256))
    return zmq.curve_public(secret), secret


def arm_client(socket: zmq.Socket, token: str) -> None:
    """To be called before the socket connects."""
    socket.curve_serverkey = key_pair(token, "server")[0]
    socket.curve_publickey, socket.curve_secretkey = key_pair(token, "client")


def arm_server(socket: zmq.Socket, token: str) -> None:
    """To be called before the socket binds; `Doorkeeper` must answer for its context."""
    socket.curve_server = True
    socket.curve_secretkey = key_pair(token, "server")[1]


class Doorkeeper:
    """Says to pyzmq's authenticator which client keys may enter (its credentials provider)."""

    def __init__(self, token: str) -> None:
        self._key = key_pair(token, "client")[0]

    def callback(self, domain: str, key: bytes) -> bool:
        """`key` in Z85."""
        return hmac.compare_digest(key, self._key)
