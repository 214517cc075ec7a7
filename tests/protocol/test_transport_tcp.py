"""The tcp lane: exact transfers, honest errors, and a server that bad peers cannot hurt."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from mortice.specs.errors import RequestError
from mortice.specs.kv import BlockRef, KVDescriptor, KVLayout
from mortice.transport import segment, wire
from mortice.transport.base import TransferResult
from mortice.transport.choose import open_pool, open_transport
from mortice.transport.descriptor import describe, describe_target
from mortice.transport.pool import PrivatePool
from mortice.transport.tcp import TcpTransport

LAYOUT = KVLayout(num_layers=2, planes=((2, 32), (2, 32)), block_size=8, dtype="float32", model="m")
TOKEN = "shared by all workers"


def wait(call: Callable[[Callable[[TransferResult], None]], None]) -> TransferResult:
    """Run one transfer and return its only result."""
    ended, results = threading.Event(), []

    def done(result: TransferResult) -> None:
        results.append(result)
        ended.set()

    call(done)
    assert ended.wait(20)
    assert len(results) == 1
    return results[0]


Pair = tuple[PrivatePool, PrivatePool, TcpTransport, TcpTransport]


@pytest.fixture
def pair() -> Iterator[Pair]:
    there, here = (PrivatePool(LAYOUT, 64, checksum="full") for _ in range(2))
    there.blocks[:] = np.random.default_rng(1).integers(0, 256, there.blocks.shape, np.uint8)
    transports = TcpTransport(there, token=TOKEN, stall_s=1.0), TcpTransport(here, token=TOKEN, stall_s=1.0)
    yield there, here, *transports
    for transport in transports:
        transport.close()


def stranger(pool: PrivatePool) -> tuple[socket.socket, wire.Link]:
    host, _, port = pool.address.tcp.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=5)
    return sock, wire.Link(sock, 5.0)


def member(pool: PrivatePool, token: str = TOKEN) -> wire.Link:
    """A hand-driven client that has shown the token."""
    _, link = stranger(pool)
    challenge = link.receive(wire.CHALLENGE)
    link.send(wire.Credentials(wire.prove(token, "client", challenge.nonce), b"n"))
    return link


def still_serves(pair: Pair) -> bool:
    there, here, _, transport = pair
    source = describe(there, "check", [1, 2, 3], 24)
    result = wait(lambda done: transport.read(source, 0, [1, 2, 3], done))
    return result.error is None and np.array_equal(here.blocks[1:4], there.blocks[1:4])


def test_reads_and_writes_land_exactly(pair):
    there, here, pusher, reader = pair
    source = describe(there, "lease", [5, 6, 7, 40, 3], 40)
    result = wait(lambda done: reader.read(source, 1, [9, 10, 0, 63], done))
    assert (result.error, result.num_bytes) == (None, 4 * LAYOUT.block_bytes)
    assert np.array_equal(here.blocks[[9, 10, 0, 63]], there.blocks[[6, 7, 40, 3]])
    target = describe_target(here, "lease", [30, 2, 3], 24)
    assert wait(lambda done: pusher.write([1, 2, 3], target, 0, done)).error is None
    assert np.array_equal(here.blocks[[30, 2, 3]], there.blocks[[1, 2, 3]])
    assert not here.blocks[[1, 4, 31]].any()
    assert reader.lanes()[0].startswith(f"pool {there.address.pool_id[:8]}: tcp to 127.0.0.1:")


def test_many_transfers_at_once_each_answer_once(pair):
    there, here, _, reader = pair
    results, ended = [], threading.Semaphore(0)

    def done(result: TransferResult) -> None:
        results.append(result)
        ended.release()

    for lane in range(60):
        reader.read(describe(there, str(lane), [lane], 8), 0, [lane], done)
    for _ in range(60):
        assert ended.acquire(timeout=20)
    assert sorted(int(result.lease_id) for result in results) == list(range(60))
    assert all(result.error is None for result in results)
    assert np.array_equal(here.blocks[:60], there.blocks[:60])


def test_nothing_to_move_is_done(pair):
    there, _, _, reader = pair
    source = describe(there, "lease", [], 0)
    assert wait(lambda done: reader.read(source, 0, [], done)).error is None


def test_given_away_blocks_are_refused_and_the_connection_goes_on(pair):
    there, here, pusher, reader = pair
    source, target = describe(there, "lease", [1, 2], 16), describe_target(here, "lease", [4, 5], 16)
    there.generations[2] += 1
    here.generations[5] += 1
    assert "block 2" in str(wait(lambda done: reader.read(source, 0, [0, 1], done)).error)
    assert "block 5" in str(wait(lambda done: pusher.write([0, 1], target, 0, done)).error)
    assert not here.blocks.any()
    assert still_serves(pair)


def test_wrong_checksums_are_errors_both_ways(pair):
    there, here, _, reader = pair
    source = describe(there, "lease", [1, 2], 16)
    there.blocks[2, 9] ^= 1
    assert "checksum of block 1" in str(wait(lambda done: reader.read(source, 0, [0, 1], done)).error)
    link = member(here)
    assert link.receive(wire.VERDICT).error is None
    link.send(wire.Write(*asked(here, [7])))
    assert link.receive(wire.VERDICT).error is None
    link.send_bytes(memoryview(bytes(LAYOUT.block_bytes)))
    link.send(wire.Sent("full", wire.pack_numbers(np.array([12345]))))
    assert "checksum of block 7" in str(link.receive(wire.VERDICT).error)
    assert len(here.landing) == 0
    link.close()


def asked(pool: PrivatePool, block_ids: list[int], **changes: object) -> tuple[object, ...]:
    fields = {
        "pool_id": pool.address.pool_id,
        "layout_digest": pool.address.layout_digest,
        "block_bytes": pool.address.block_bytes,
        "ids": wire.pack_numbers(np.array(block_ids, np.uint64)),
        "generations": wire.pack_numbers(np.zeros(len(block_ids))),
    }
    return tuple((fields | changes).values())


@pytest.mark.parametrize(
    ("ids", "changes", "error"),
    [
        ([1], {"pool_id": "0" * 32}, "restarted"),
        ([1], {"layout_digest": "0" * 32}, "layouts differ"),
        ([1], {"block_bytes": 1}, "layouts differ"),
        ([64], {}, "outside the pool"),
        ([(1 << 64) - 1], {}, "outside the pool"),
        ([1, 2, 1], {}, "twice"),
        (list(range(100_000)), {}, "outside the pool"),
        ([1, 2], {"generations": b"\0" * 8}, "2 blocks with 1 generations"),
        ([1], {"ids": b"\0" * 7}, "cut short"),
    ],
)
@pytest.mark.parametrize("verb", [wire.Read, wire.Write])
def test_requests_that_make_no_sense_get_a_verdict(pair, verb, ids, changes, error):
    link = member(pair[0])
    assert link.receive(wire.VERDICT).error is None
    link.send(verb(*asked(pair[0], ids, **changes)))
    assert error in str(link.receive(wire.VERDICT).error)
    link.send(wire.Probe(10))  # the connection is in order
    assert link.receive(wire.VERDICT).error is None
    link.close()
    assert still_serves(pair)


@pytest.mark.parametrize("size", [-1, wire.MAX_PROBE + 1])
def test_a_probe_has_a_limit(pair, size):
    link = member(pair[0])
    assert link.receive(wire.VERDICT).error is None
    link.send(wire.Probe(size))
    assert "probe" in str(link.receive(wire.VERDICT).error)
    link.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<I", 5) + b"\xc1\xc1\xc1\xc1\xc1",
        struct.pack("<I", 3) + msgspec.msgpack.encode(7)[:1] * 3,
        b"",
    ],
)
def test_a_stranger_who_talks_nonsense_is_cut_off(pair, garbage):
    sock, link = stranger(pair[0])
    link.receive(wire.CHALLENGE)
    sock.sendall(garbage)
    with contextlib.suppress(OSError):  # it may have cut us off already
        sock.shutdown(socket.SHUT_WR)
    with pytest.raises(wire.PeerGone):
        link.receive(wire.VERDICT)
    link.close()
    assert still_serves(pair)


def test_a_member_who_talks_nonsense_is_cut_off(pair):
    link = member(pair[0])
    assert link.receive(wire.VERDICT).error is None
    link.send(wire.Challenge(1, b"not an ask"))
    with pytest.raises(wire.PeerGone):
        link.receive(wire.VERDICT)
    link.close()
    assert still_serves(pair)


def test_a_stranger_who_says_nothing_is_cut_off_in_time(pair):
    _, link = stranger(pair[0])
    link.receive(wire.CHALLENGE)
    with pytest.raises(wire.PeerGone, match="closed"):  # the server's limit (1 s) is below ours (5 s)
        link.receive(wire.VERDICT)
    link.close()


def test_the_token_is_needed_on_both_sides(pair):
    there = pair[0]
    link = member(there, token="guess")
    assert link.receive(wire.VERDICT).error == "wrong token"
    link.close()
    other = PrivatePool(LAYOUT, 4)
    transport = TcpTransport(other, token="guess")
    source = describe(there, "lease", [1], 8)
    assert "wrong token" in str(wait(lambda done: transport.read(source, 0, [1], done)).error)
    transport.close()
    with pytest.raises(RequestError, match="token"):
        TcpTransport(other, token="")


def impostor(behave: Callable[[wire.Link], None]) -> tuple[socket.socket, str]:
    """A server that knows the token and then does as `behave` says, once."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        link = wire.Link(connection, 5.0)
        link.send(wire.Challenge(wire.VERSION, b"x"))
        shown = link.receive(wire.CREDENTIALS)
        link.send(wire.Verdict(proof=wire.prove(TOKEN, "server", shown.nonce)))
        link.receive(wire.ASK)  # the probe
        link.send(wire.Verdict())
        link.send_bytes(memoryview(bytes(wire.MAX_PROBE)))
        link.receive(wire.ASK)
        behave(link)
        link.close()

    threading.Thread(target=serve, daemon=True).start()
    return listening, f"127.0.0.1:{listening.getsockname()[1]}"


def half_then_close(link: wire.Link) -> None:
    link.send(wire.Verdict())
    link.send_bytes(memoryview(b"\1" * (LAYOUT.block_bytes * 3 // 2)))


def half_then_silence(link: wire.Link) -> None:
    half_then_close(link)
    link.wait()


def all_but_changed_meanwhile(link: wire.Link) -> None:
    link.send(wire.Verdict())
    link.send_bytes(memoryview(b"\1" * (LAYOUT.block_bytes * 2)))
    link.send(wire.Verdict("1 blocks changed hands during the read"))


def too_much(link: wire.Link) -> None:
    link.send(wire.Verdict())
    link.send_bytes(memoryview(b"\xff" * (LAYOUT.block_bytes * 3)))


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (half_then_close, "closed the connection"),
        (half_then_silence, "no bytes from the peer for 1 s"),
        (all_but_changed_meanwhile, "changed hands"),
        (too_much, "frame"),
    ],
)
def test_partial_landings_are_errors_and_a_second_try_mends_them(pair, behave, error):
    there, here, _, reader = pair
    good = describe(there, "lease", [1, 2], 16)
    listening, address = impostor(behave)
    moved = msgspec.structs.replace(good.pool, tcp=address, pool_id="f" * 32)
    bad = KVDescriptor(lease_id="lease", pool=moved, blocks=good.blocks, num_tokens=16)
    result = wait(lambda done: reader.read(bad, 0, [0, 1], done))
    listening.close()
    assert error in str(result.error)
    assert result.num_bytes == 0
    assert len(here.landing) == 0
    assert wait(lambda done: reader.read(good, 0, [0, 1], done)).error is None
    assert np.array_equal(here.blocks[:2], there.blocks[1:3])


def test_blocks_given_away_while_a_write_lands_are_left_alone(pair):
    here = pair[1]
    link = member(here)
    assert link.receive(wire.VERDICT).error is None
    link.send(wire.Write(*asked(here, [3, 9])))
    assert link.receive(wire.VERDICT).error is None
    link.send_bytes(memoryview(b"\1" * LAYOUT.block_bytes))
    while not here.blocks[3].all():
        time.sleep(0.001)
    here.generations[9] += 1
    link.send_bytes(memoryview(b"\1" * LAYOUT.block_bytes))
    link.send(wire.Sent("off", b""))
    assert "changed hands during the write" in str(link.receive(wire.VERDICT).error)
    assert len(here.landing) == 0
    link.close()


def test_two_writers_to_one_block_are_told_apart(pair):
    here = pair[1]
    first, second = member(here), member(here)
    for link in (first, second):
        assert link.receive(wire.VERDICT).error is None
        link.send(wire.Write(*asked(here, [3])))
        verdict = link.receive(wire.VERDICT).error
        assert (verdict is None) == (link is first)
    first.send_bytes(memoryview(b"\7" * LAYOUT.block_bytes))
    first.send(wire.Sent("off", b""))
    assert first.receive(wire.VERDICT).error is None
    assert (here.blocks[3] == 7).all()
    first.close()
    second.close()


def test_a_writer_who_leaves_frees_the_blocks(pair):
    here = pair[1]
    link = member(here)
    assert link.receive(wire.VERDICT).error is None
    link.send(wire.Write(*asked(here, [3, 4])))
    assert link.receive(wire.VERDICT).error is None
    assert len(here.landing) == 2
    link.close()
    deadline = time.monotonic() + 10
    while len(here.landing) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(here.landing) == 0


def test_a_restarted_peer_is_not_taken_for_the_old_one(pair):
    there, _, _, reader = pair
    source = describe(there, "lease", [1], 8)
    assert wait(lambda done: reader.read(source, 0, [0], done)).error is None
    port = int(there.address.tcp.rpartition(":")[2])
    pair[2].close()
    assert "cannot reach" in str(wait(lambda done: reader.read(source, 0, [0], done)).error)
    again = PrivatePool(LAYOUT, 64)
    transport = TcpTransport(again, token=TOKEN, port=port)
    assert "restarted" in str(wait(lambda done: reader.read(source, 0, [0], done)).error)
    fresh = describe(again, "lease", [1], 8)
    assert wait(lambda done: reader.read(fresh, 0, [0], done)).error is None
    transport.close()


def test_a_peer_without_a_server_and_a_forgotten_one_are_gone(pair):
    there, _, _, reader = pair
    source = describe(there, "lease", [1], 8)
    unserved = msgspec.structs.replace(
        source, pool=msgspec.structs.replace(source.pool, tcp="", pool_id="a" * 32)
    )
    assert "not served over tcp" in str(wait(lambda done: reader.read(unserved, 0, [0], done)).error)
    assert wait(lambda done: reader.read(source, 0, [0], done)).error is None
    reader.forget(source.pool.pool_id)
    assert "gone" in str(wait(lambda done: reader.read(source, 0, [0], done)).error)


def test_closing_ends_a_transfer_that_waits(pair):
    there, here, _, _ = pair
    listening = socket.create_server(("127.0.0.1", 0))  # accepts, says nothing
    pool = PrivatePool(LAYOUT, 4)
    transport = TcpTransport(pool, token=TOKEN, stall_s=30.0)
    silent = msgspec.structs.replace(there.address, tcp=f"127.0.0.1:{listening.getsockname()[1]}")
    source = KVDescriptor(lease_id="lease", pool=silent, blocks=[BlockRef(1, 0, 0)], num_tokens=8)
    results: list[TransferResult] = []
    transport.read(source, 0, [1], results.append)
    connection, _ = listening.accept()
    transport.close()
    assert len(results) == 1
    assert results[0].error is not None
    connection.close()
    listening.close()
    assert not here.blocks.any()


@pytest.mark.parametrize("listen", ["0.0.0.0", "::", "localhost", "nonsense"])
def test_an_address_that_peers_cannot_use_is_refused(listen):
    with pytest.raises(RequestError) as caught:
        TcpTransport(PrivatePool(LAYOUT, 1), token=TOKEN, listen=listen)
    assert caught.value.param == "transfer.listen"


@pytest.mark.skipif(not segment.available(), reason="no POSIX shared memory here")
def test_auto_takes_shared_memory_where_it_can_and_says_where_it_cannot():
    lines: list[str] = []
    there, here = open_pool("auto", LAYOUT, 8), open_pool("auto", LAYOUT, 8)
    serving = open_transport("auto", there, token=TOKEN)
    transport = open_transport("auto", here, token=TOKEN, report=lines.append)
    there.blocks[:] = 9
    source = describe(there, "lease", [1, 2], 16)
    assert wait(lambda done: transport.read(source, 0, [0, 1], done)).error is None
    assert ": shm, " in lines[-1]

    elsewhere = KVDescriptor(
        lease_id="lease",
        pool=msgspec.structs.replace(source.pool, host="another"),
        blocks=source.blocks,
        num_tokens=16,
    )
    transport.forget("none")
    other = open_transport("auto", here, token=TOKEN, report=lines.append)
    assert wait(lambda done: other.read(elsewhere, 0, [2, 3], done)).error is None
    assert ": tcp to " in lines[-1]
    assert "falls back" not in lines[-1]

    hidden = open_transport("auto", here, token=TOKEN, report=lines.append)
    unmappable = msgspec.structs.replace(
        source, pool=msgspec.structs.replace(source.pool, shm_name="mortice.1.x")
    )
    assert wait(lambda done: hidden.read(unmappable, 0, [4, 5], done)).error is None
    assert any("on this host, but falls back to tcp" in line for line in lines)
    assert any("falls back" in line for line in hidden.lanes())
    assert (here.blocks[:6] == 9).all()
    for opened in (serving, transport, other, hidden, there, here):
        opened.close()
