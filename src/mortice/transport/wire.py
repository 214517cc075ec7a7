"""The language of the tcp lane: framed msgpack headers, raw blocks between them.

    server: Challenge                       client: Credentials (proves the token, challenges back)
    server: Verdict with its own proof
    then any number of times, client first:
      Read   -> Verdict, blocks, Verdict (did they stay what they were while they were sent?)
      Write  -> Verdict; client: blocks, Sent -> Verdict
      Probe  -> Verdict, zeros
    A Verdict with an error where blocks would follow ends the exchange; the connection stays good.

A frame is its length (uint32, little-endian) and one msgpack value. Both sides know the token; it never
travels. Beyond a host all of this goes within TLS (sealed.py).
"""

import contextlib
import hashlib
import hmac
import secrets
import select
import socket
import struct
from typing import TypeVar

import msgspec
import numpy as np

from mortice.specs.kv import ChecksumMode
from mortice.transport.errors import PeerGone, TransferError

VERSION = 1
MAX_HANDSHAKE = 1 << 10  # bytes a stranger may make us hold
MAX_FRAME = 16 << 20  # bytes; a request names each block in 16
MAX_PROBE = 4 << 20
CHUNK_BYTES = 4 << 20  # payload that one system call may move
_LENGTH = struct.Struct("<I")

Message = TypeVar("Message")


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    version: int
    nonce: bytes


class Credentials(msgspec.Struct, frozen=True, array_like=True):
    proof: bytes
    nonce: bytes


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    error: str | None = None
    proof: bytes = b""


class Blocks(msgspec.Struct, frozen=True, array_like=True):
    """Blocks of the server's pool under the client's descriptor."""

    pool_id: str
    layout_digest: str
    block_bytes: int
    ids: bytes  # uint64, little-endian
    generations: bytes  # uint64, little-endian, one an id


class Read(Blocks, tag="read", frozen=True, array_like=True):
    """Send these blocks."""


class Write(Blocks, tag="write", frozen=True, array_like=True):
    """Take these blocks."""


class Probe(msgspec.Struct, tag="probe", frozen=True, array_like=True):
    num_bytes: int


class Sent(msgspec.Struct, frozen=True, array_like=True):
    """Ends the payload of a Write: what the blocks' checksums must be where they landed."""

    mode: ChecksumMode
    checksums: bytes  # uint64, little-endian, one a block; empty for mode "off"


Ask = Read | Write | Probe

CHALLENGE = msgspec.msgpack.Decoder(Challenge)
CREDENTIALS = msgspec.msgpack.Decoder(Credentials)
VERDICT = msgspec.msgpack.Decoder(Verdict)
ASK: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)
SENT = msgspec.msgpack.Decoder(Sent)


def prove(token: str, role: str, nonce: bytes) -> bytes:
    """What only a holder of the token can answer to `nonce`."""
    return hmac.new(token.encode(), f"mortice-kv-{VERSION}-{role}-".encode() + nonce, hashlib.sha256).digest()


def proves(proof: bytes, token: str, role: str, nonce: bytes) -> bool:
    """Whether the proof is right, in time that does not depend on where it is wrong."""
    return hmac.compare_digest(proof, prove(token, role, nonce))


def fresh_nonce() -> bytes:
    return secrets.token_bytes(16)


def pack_numbers(numbers: np.ndarray) -> bytes:
    return np.ascontiguousarray(numbers, dtype="<u8").tobytes()


def unpack_numbers(data: bytes) -> np.ndarray:
    """uint64 [n]. Raises TransferError if the bytes are not whole numbers."""
    if len(data) % 8:
        raise TransferError("a list of numbers is cut short")
    return np.frombuffer(data, "<u8")


class Link:
    """One end of a connection. Every wait is bounded by `stall_s`; whatever ends the connection is
    PeerGone."""

    def __init__(self, sock: socket.socket, stall_s: float) -> None:
        self._sock = sock
        self._stall_s = stall_s
        timeout = struct.pack("@ll", int(stall_s), int(stall_s % 1 * 1e6))
        # Time limits of the kernel, so that one call can wait for a whole chunk (Python's own need many).
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def handshake(self) -> None:
        """What has to be agreed before the first frame: nothing (see SealedLink)."""

    def send(self, message: msgspec.Struct) -> None:
        body = msgspec.msgpack.encode(message)
        self.send_bytes(memoryview(_LENGTH.pack(len(body)) + body))

    def receive(self, decoder: msgspec.msgpack.Decoder[Message], limit: int = MAX_FRAME) -> Message:
        """The next frame. A frame too long, or of another kind, is a TransferError: nobody can say what
        follows it."""
        head = bytearray(_LENGTH.size)
        self.receive_into(memoryview(head), whole=True)
        (length,) = _LENGTH.unpack(head)
        if length > limit:
            raise TransferError(f"a frame of {length} bytes, above the limit of {limit}")
        body = bytearray(length)
        self.receive_into(memoryview(body), whole=True)
        try:
            return decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TransferError(f"a frame that makes no sense: {error}") from error

    def send_bytes(self, data: memoryview) -> None:
        try:
            self._sock.sendall(data)
        except (BlockingIOError, TimeoutError) as error:  # the kernel's time limit, or Python's (SealedLink)
            raise PeerGone(f"the peer took no bytes for {self._stall_s:g} s") from error
        except OSError as error:
            raise PeerGone(f"connection lost: {error.strerror or error}") from error

    def receive_into(self, data: memoryview, *, whole: bool = False) -> None:
        """Fill `data`. `whole`: the time limit is for all of it, not for the next byte."""
        filled = 0
        while filled < len(data):
            try:
                count = self._sock.recv_into(data[filled:], 0, socket.MSG_WAITALL)
            except BlockingIOError as error:
                raise PeerGone(f"no bytes from the peer for {self._stall_s:g} s") from error
            except OSError as error:
                raise PeerGone(f"connection lost: {error.strerror or error}") from error
            if not count:
                raise PeerGone("the peer closed the connection")
            filled += count
            if whole and filled < len(data):
                raise PeerGone(f"the peer did not end its frame in {self._stall_s:g} s")

    def wait(self) -> bool:
        """Wait, however long, for the peer to say something. False if it closed or was interrupted
        instead."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        try:
            poll.poll()
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def interrupt(self) -> None:
        """End the connection from another thread: whoever waits on it gets PeerGone, and closes it."""
        with contextlib.suppress(OSError):  # not connected any more: all the same
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()


def chunk_blocks(block_bytes: int) -> int:
    """Blocks of payload in one system call."""
    return max(1, CHUNK_BYTES // block_bytes)


def rows(blocks: np.ndarray, first: int, count: int) -> memoryview:
    """The bytes of `count` blocks from `first` on, not copied."""
    return blocks[first : first + count].reshape(-1).data
