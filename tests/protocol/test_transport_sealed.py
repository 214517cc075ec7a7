"""The tcp lane within TLS: what travels cannot be read or changed, strangers get nothing, and a mishap stays one."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from mortice.specs.deployment import Deployment, Transfer
from mortice.specs.errors import RequestError
from mortice.specs.kv import KVDescriptor, KVLayout
from mortice.transport import wire
from mortice.transport.base import TransferResult
from mortice.transport.descriptor import describe, describe_target
from mortice.transport.errors import PeerGone
from mortice.transport.pool import PrivatePool
from mortice.transport.sealed import SealedLink, is_sealed, seal
from mortice.transport.tcp import TcpTransport
from mortice.transport.token_keys import certificate

LAYOUT = KVLayout(num_layers=2, planes=((2, 32), (2, 32)), block_size=8, dtype="float32", model="m")
TOKEN = "shared by all workers"
MARK = b"what nobody else may read"


def wait(call: Callable[[Callable[[TransferResult], None]], None]) -> TransferResult:
    ended, results = threading.Event(), []

    def done(result: TransferResult) -> None:
        results.append(result)
        ended.set()

    call(done)
    assert ended.wait(20)
    return results[0]


Pair = tuple[PrivatePool, PrivatePool, TcpTransport, TcpTransport]


def make_pair(encrypt: str) -> Pair:
    there, here = (PrivatePool(LAYOUT, 64, checksum="full") for _ in range(2))
    rows = there.blocks.shape[1] // len(MARK) + 1
    there.blocks[:] = np.frombuffer((MARK * rows)[: there.blocks.shape[1]], np.uint8)
    there.blocks[:, 0] = np.arange(64)
    first, second = (
        TcpTransport(p, token=TOKEN, stall_s=2.0, encrypt=encrypt)  # type: ignore[arg-type]
        for p in (there, here)
    )
    return there, here, first, second


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = make_pair("on")
    yield made
    for transport in made[2:]:
        transport.close()


class Tap:
    """Stands between a reader and the server of a pool: keeps all that passes, and may change it."""

    def __init__(self, pool: PrivatePool, change: Callable[[bytes], bytes] = bytes) -> None:
        self.heard = bytearray()
        self._to, self._change = pool.address.tcp, change
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            host, _, port = self._to.rpartition(":")
            far = socket.create_connection((host, int(port)))
            threading.Thread(target=self._pass, args=(near, far, bytes), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, self._change), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
        try:
            while data := source.recv(1 << 16):
                self.heard += data
                target.sendall(change(data))
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def through(self, source: KVDescriptor) -> KVDescriptor:
        return msgspec.structs.replace(source, pool=msgspec.structs.replace(source.pool, tcp=self.address))

    def close(self) -> None:
        self._listening.close()


def still_serves(pair: Pair) -> bool:
    there, here, _, transport = pair
    source = describe(there, "check", [1, 2, 3], 24)
    result = wait(lambda done: transport.read(source, 0, [1, 2, 3], done))
    return result.error is None and np.array_equal(here.blocks[1:4], there.blocks[1:4])


def test_reads_and_writes_land_exactly(pair: Pair) -> None:
    there, here, pusher, reader = pair
    source = describe(there, "lease", [5, 6, 7, 40, 3], 40)
    result = wait(lambda done: reader.read(source, 1, [9, 10, 0, 63], done))
    assert (result.error, result.num_bytes) == (None, 4 * LAYOUT.block_bytes)
    assert np.array_equal(here.blocks[[9, 10, 0, 63]], there.blocks[[6, 7, 40, 3]])
    target = describe_target(here, "lease", [30, 2, 3], 24)
    assert wait(lambda done: pusher.write([1, 2, 3], target, 0, done)).error is None
    assert np.array_equal(here.blocks[[30, 2, 3]], there.blocks[[1, 2, 3]])
    assert reader.lanes()[0].partition(", encrypted")[1]


def test_given_away_blocks_are_refused_and_the_connection_goes_on(pair: Pair) -> None:
    there, here, _, reader = pair
    source = describe(there, "lease", [1, 2], 16)
    there.generations[2] += 1
    assert "block 2" in str(wait(lambda done: reader.read(source, 0, [0, 1], done)).error)
    assert not here.blocks.any()
    assert still_serves(pair)


@pytest.mark.parametrize(("encrypt", "is_read"), [("on", False), ("off", True)])
def test_who_listens_on_the_way_reads_nothing(encrypt: str, is_read: bool) -> None:
    pair = make_pair(encrypt)
    there, here, _, reader = pair
    tap = Tap(there)
    source = tap.through(describe(there, "lease", list(range(20)), 160))
    assert wait(lambda done: reader.read(source, 0, list(range(20)), done)).error is None
    assert np.array_equal(here.blocks[:20], there.blocks[:20])
    assert len(tap.heard) > 20 * LAYOUT.block_bytes
    assert (MARK in tap.heard) == is_read
    assert (there.address.pool_id.encode() in tap.heard) == is_read
    tap.close()
    for transport in pair[2:]:
        transport.close()


def test_what_is_changed_on_the_way_is_never_data(pair: Pair) -> None:
    """One bit of the payload: the connection ends, and the next one brings the blocks."""
    there, here, _, reader = pair
    passed = 0

    def change(data: bytes) -> bytes:
        nonlocal passed
        before, passed = passed, passed + len(data)
        if before < wire.MAX_PROBE + 20_000 <= passed:
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    tap = Tap(there, change)
    source = tap.through(describe(there, "lease", list(range(60)), 480))
    result = wait(lambda done: reader.read(source, 0, list(range(60)), done))
    assert "connection lost" in str(result.error)
    assert len(here.landing) == 0
    assert wait(lambda done: reader.read(source, 0, list(range(60)), done)).error is None
    assert np.array_equal(here.blocks[:60], there.blocks[:60])
    tap.close()


def test_who_does_not_know_the_token_gets_nothing(pair: Pair) -> None:
    there = pair[0]
    other = PrivatePool(LAYOUT, 4)
    guess = TcpTransport(other, token="guess", stall_s=1.0, encrypt="on")
    source = describe(there, "lease", [1], 8)
    assert "does not know the token" in str(wait(lambda done: guess.read(source, 0, [1], done)).error)
    assert not other.blocks.any()
    guess.close()
    host, _, port = there.address.tcp.rpartition(":")
    link = SealedLink(socket.create_connection((host, int(port)), timeout=5), 5.0, _without_a_key())
    link.handshake()
    with pytest.raises(PeerGone):  # TLS 1.3: who shows nothing learns it with the first byte it reads
        link.receive(wire.CHALLENGE)
    link.close()
    assert still_serves(pair)


def _without_a_key() -> ssl.SSLContext:
    """A client that believes the server and has no certificate to show."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_one_side_alone_encrypted_is_an_error_at_both(pair: Pair) -> None:
    there = pair[0]
    other = PrivatePool(LAYOUT, 4)
    plain = TcpTransport(other, token=TOKEN, stall_s=1.0, encrypt="off")
    source = describe(there, "lease", [1], 8)
    assert wait(lambda done: plain.read(source, 0, [1], done)).error is not None
    back = describe(other, "lease", [1], 8)
    assert wait(lambda done: pair[3].read(back, 0, [1], done)).error is not None
    plain.close()
    assert still_serves(pair)


@pytest.mark.parametrize("trickles", [False, True])
def test_a_stranger_who_never_ends_the_handshake_is_cut_off(pair: Pair, trickles: bool) -> None:
    host, _, port = pair[0].address.tcp.rpartition(":")
    stranger = socket.create_connection((host, int(port)), timeout=20)
    ended = threading.Event()

    def drip() -> None:  # a client hello that goes on for ever
        try:
            stranger.sendall(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc")
            while not ended.wait(0.1):
                stranger.sendall(b"\0")
        except OSError:
            pass

    thread = threading.Thread(target=drip)
    if trickles:
        thread.start()
    with contextlib.suppress(ConnectionError):  # closed, if with a farewell
        assert stranger.recv(64) in (b"", b"\x15\x03\x01\x00\x02\x02\x32")
    ended.set()
    if trickles:
        thread.join()
    stranger.close()
    assert still_serves(pair)


def test_closing_ends_a_transfer_that_waits_for_a_handshake(pair: Pair) -> None:
    listening = socket.create_server(("127.0.0.1", 0))  # accepts, says nothing
    pool = PrivatePool(LAYOUT, 4)
    transport = TcpTransport(pool, token=TOKEN, stall_s=30.0, encrypt="on")
    there = pair[0]
    source = describe(there, "lease", [1], 8)
    silent = msgspec.structs.replace(there.address, tcp=f"127.0.0.1:{listening.getsockname()[1]}")
    results: list[TransferResult] = []
    transport.read(msgspec.structs.replace(source, pool=silent), 0, [1], results.append)
    connection, _ = listening.accept()
    transport.close()
    assert results[0].error is not None
    connection.close()
    listening.close()


def test_a_peer_that_was_forgotten_ends_its_reads(pair: Pair) -> None:
    there, _, _, reader = pair
    assert still_serves(pair)
    reader.forget(there.address.pool_id)
    source = describe(there, "lease", [1], 8)
    assert "gone" in str(wait(lambda done: reader.read(source, 0, [1], done)).error)


def test_beyond_the_host_is_encrypted_unless_told() -> None:
    within, beyond_it = ("127.0.0.1", "::1", "127.0.0.9"), ("10.1.2.3", "fe80::1")
    for address, beyond in [*((a, False) for a in within), *((a, True) for a in beyond_it)]:
        assert is_sealed("auto", address) == beyond
        assert is_sealed("on", address)
        assert not is_sealed("off", address)
    for kind in ("shm", "nixl"):
        with pytest.raises(RequestError, match="cannot encrypt"):
            Deployment(model="fake", transfer=Transfer(transport=kind, encrypt="on")).check()  # type: ignore[arg-type]


def test_keys_are_those_of_the_token_and_of_the_side() -> None:
    assert certificate(TOKEN, "server") == certificate(TOKEN, "server")
    made = {certificate(token, side) for token in (TOKEN, "guess") for side in ("server", "client")}  # type: ignore[arg-type]
    assert len(made) == 4
    assert seal(TOKEN, "server").minimum_version.name == "TLSv1_3"
