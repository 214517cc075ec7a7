"""Shared memory: segments, mappings, and reads and writes that are exact or an error."""

import os
import threading
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from mortice.specs.errors import RequestError
from mortice.specs.kv import BlockRef, KVDescriptor, KVLayout
from mortice.transport import segment
from mortice.transport.base import TransferResult
from mortice.transport.checksum import checksum
from mortice.transport.choose import open_pool, open_transport
from mortice.transport.copy import runs
from mortice.transport.descriptor import describe, describe_target
from mortice.transport.pool import PrivatePool, SharedPool
from mortice.transport.shm import ShmTransport

pytestmark = pytest.mark.skipif(not segment.available(), reason="no POSIX shared memory here")

LAYOUT = KVLayout(num_layers=2, planes=((2, 32), (2, 32)), block_size=8, dtype="float32", model="m")
PREFIX = f"mortice-test-{os.getpid()}"


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


def fill(pool: SharedPool | PrivatePool, seed: int) -> None:
    pool.blocks[:] = np.random.default_rng(seed).integers(0, 256, pool.blocks.shape, np.uint8)


@pytest.fixture
def pair() -> Iterator[tuple[SharedPool, SharedPool, ShmTransport, ShmTransport]]:
    there, here = (SharedPool(LAYOUT, 32, prefix=PREFIX, checksum="full") for _ in range(2))
    fill(there, 1)
    transports = ShmTransport(there), ShmTransport(here)
    yield there, here, *transports
    for transport in transports:
        transport.close()
    there.close()
    here.close()
    assert not list(segment.FOLDER.glob(f"{PREFIX}.*"))


def test_read_lands_exactly_the_described_blocks(pair):
    there, here, _, transport = pair
    source = describe(there, "lease", [5, 6, 7, 20, 3], 40)
    result = wait(lambda done: transport.read(source, 1, [9, 10, 0, 31], done))
    assert result.error is None
    assert (result.lease_id, result.num_bytes) == ("lease", 4 * LAYOUT.block_bytes)
    assert np.array_equal(here.blocks[[9, 10, 0, 31]], there.blocks[[6, 7, 20, 3]])
    untouched = np.setdiff1d(np.arange(32), [9, 10, 0, 31])
    assert not here.blocks[untouched].any()


def test_write_lands_in_the_peers_blocks(pair):
    there, here, transport, _ = pair
    target = describe_target(here, "lease", [30, 2, 3], 24)
    result = wait(lambda done: transport.write([1, 2, 3], target, 0, done))
    assert result.error is None
    assert np.array_equal(here.blocks[[30, 2, 3]], there.blocks[[1, 2, 3]])


def test_nothing_to_move_is_done_without_meeting_the_peer(pair):
    there, _, _, transport = pair
    source = describe(there, "lease", [1, 2], 16)
    there.close()
    assert wait(lambda done: transport.read(source, 2, [], done)).error is None
    assert transport.lanes() == []


def altered(source: KVDescriptor, **pool: object) -> KVDescriptor:
    return msgspec.structs.replace(source, pool=msgspec.structs.replace(source.pool, **pool))


@pytest.mark.parametrize(
    ("blocks", "skip", "into", "error"),
    [
        ([1, 2], 0, [1], "2 blocks described, 1 local"),
        ([1, 2], 3, [], "cannot skip"),
        ([1, 2], -1, [0, 1, 2], "cannot skip"),
        ([1, 32], 0, [0, 1], "outside the pool"),
        ([1, -1], 0, [0, 1], "outside the pool"),
        ([1, 1 << 70], 0, [0, 1], "64 bits"),
        ([1, 2], 0, [0, 99], "outside the pool"),
        ([1, 2], 0, [4, 4], "twice"),
        ([2, 2], 0, [4, 5], "twice"),
        (list(range(100_000)), 0, list(range(100_000)), "outside the pool"),
    ],
)
def test_a_request_that_does_not_fit_is_an_error_and_touches_nothing(pair, blocks, skip, into, error):
    there, here, _, transport = pair
    source = msgspec.structs.replace(
        describe(there, "lease", [], 0), blocks=[BlockRef(block, 0, 0) for block in blocks]
    )
    result = wait(lambda done: transport.read(source, skip, into, done))
    assert error in str(result.error)
    assert not here.blocks.any()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"layout_digest": "0" * 32}, "layouts differ"),
        ({"block_bytes": 4096}, "layouts differ"),
        ({"num_blocks": 64}, "not the layout of its address"),
        ({"pool_id": "0" * 32}, "restarted"),
        ({"shm_name": "../etc/passwd"}, "not the name"),
        ({"shm_name": ""}, "not the name"),
        ({"shm_name": f"{PREFIX}.1.gone"}, "cannot open"),
    ],
)
def test_an_address_that_is_not_the_pools_is_refused(pair, change, error):
    there, _, _, transport = pair
    source = altered(describe(there, "lease", [1], 8), **change)
    assert error in str(wait(lambda done: transport.read(source, 0, [1], done)).error)


def test_a_file_that_is_no_pool_is_refused(pair):
    there, _, _, transport = pair
    path = segment.FOLDER / f"{PREFIX}.1.junk"
    source = altered(describe(there, "lease", [1], 8), shm_name=path.name)
    for content in (b"", b"x" * 8192, (segment.FOLDER / there.address.shm_name).read_bytes()[:8192]):
        path.write_bytes(content)
        try:
            error = wait(lambda done: transport.read(source, 0, [1], done)).error
        finally:
            path.unlink()
        assert error is not None


def test_a_block_given_away_before_the_transfer_is_never_data(pair):
    there, here, transport, reader = pair
    source, target = describe(there, "lease", [1, 2], 16), describe_target(here, "lease", [4, 5], 16)
    there.generations[2] += 1
    here.generations[5] += 1
    assert "block 2" in str(wait(lambda done: reader.read(source, 0, [0, 1], done)).error)
    assert "block 5" in str(wait(lambda done: transport.write([0, 1], target, 0, done)).error)
    assert not here.blocks.any()


def test_a_wrong_checksum_is_an_error_and_the_blocks_can_be_used_again(pair):
    there, here, _, transport = pair
    source = describe(there, "lease", [1, 2], 16)
    there.blocks[2, 77] ^= 4
    assert "checksum of block 1" in str(wait(lambda done: transport.read(source, 0, [0, 1], done)).error)
    there.blocks[2, 77] ^= 4
    assert wait(lambda done: transport.read(source, 0, [0, 1], done)).error is None
    assert np.array_equal(here.blocks[:2], there.blocks[1:3])


def test_verify_off_leaves_checksums_alone_but_not_generations(pair):
    there, here, _, _ = pair
    transport = ShmTransport(here, verify=False)
    source = describe(there, "lease", [1], 8)
    there.blocks[1, 5] ^= 1
    assert wait(lambda done: transport.read(source, 0, [0], done)).error is None
    there.generations[1] += 1
    assert wait(lambda done: transport.read(source, 0, [0], done)).error is not None
    transport.close()


def test_two_transfers_never_write_one_block(pair):
    there, here, _, transport = pair
    source = describe(there, "lease", [1, 2], 16)
    with here.landing.claim([7]):
        error = wait(lambda done: transport.read(source, 0, [6, 7], done)).error
    assert "block 7 is being written" in str(error)
    assert wait(lambda done: transport.read(source, 0, [6, 7], done)).error is None
    assert len(here.landing) == 0


def test_a_closed_pool_and_a_forgotten_peer_are_gone(pair):
    there, _, _, transport = pair
    source = describe(there, "lease", [1], 8)
    assert wait(lambda done: transport.read(source, 0, [1], done)).error is None
    there.close()
    error = wait(lambda done: transport.read(source, 0, [1], done)).error
    assert "closed its pool" in str(error)
    transport.forget(source.pool.pool_id)
    assert "gone" in str(wait(lambda done: transport.read(source, 0, [1], done)).error)
    assert transport.lanes() == []


def test_a_closed_transport_answers_with_an_error(pair):
    there, _, _, transport = pair
    source = describe(there, "lease", [1], 8)
    transport.close()
    transport.close()
    assert "closed" in str(wait(lambda done: transport.read(source, 0, [1], done)).error)


def test_a_callback_that_raises_does_not_stop_the_thread(pair, monkeypatch):
    there, _, _, transport = pair
    source = describe(there, "lease", [1], 8)
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))

    def broken(_result: TransferResult) -> None:
        raise KeyError

    transport.read(source, 0, [1], broken)
    assert wait(lambda done: transport.read(source, 0, [2], done)).error is None
    assert seen == [KeyError]


def test_reads_racing_with_reuse_are_exact_or_an_error(pair):
    """The seqlock alone, checksums off: a block holds the low byte of its generation in every byte."""
    there, here, _, _ = pair
    transport = ShmTransport(here, verify=False)
    there.blocks[:] = 0
    settled, stop = threading.Lock(), threading.Event()  # descriptors are written while content stands still

    def reuse() -> None:
        draw = np.random.default_rng(3)
        while not stop.is_set():
            block = int(draw.integers(32))
            with settled:
                there.generations[block] += 1
                there.blocks[block] = int(there.generations[block]) & 255

    owner = threading.Thread(target=reuse)
    owner.start()
    taken = refused = 0
    try:
        for first in np.arange(200) % 31:
            ids = [int(first), int(first) + 1]
            with settled:
                source = describe_target(there, "lease", ids, 16)
            if wait(lambda done, source=source: transport.read(source, 0, [0, 1], done)).error:
                refused += 1
                continue
            taken += 1
            for row, ref in zip(here.blocks[:2], source.blocks, strict=True):
                assert (row == ref.generation & 255).all()
    finally:
        stop.set()
        owner.join()
        transport.close()
    assert taken + refused == 200


def test_sweep_removes_only_what_dead_owners_left(pair):
    there, _, _, _ = pair
    orphan = segment.create(PREFIX, "p", "d", 1, 64)
    dead = orphan.path.with_name(orphan.path.name.replace(f".{os.getpid()}.", ".4194305."))
    orphan.path.rename(dead)
    assert segment.sweep(PREFIX, {os.getpid()}) == [dead.name]
    assert (segment.FOLDER / there.address.shm_name).exists()
    assert segment.sweep(PREFIX, {os.getpid()}) == []


def test_too_large_a_pool_says_how_to_mend_it_and_leaves_nothing():
    free = os.statvfs(segment.FOLDER)
    num_blocks = (free.f_bavail * free.f_frsize * 2) // LAYOUT.block_bytes
    with pytest.raises(RequestError, match="docker") as caught:
        SharedPool(LAYOUT, num_blocks, prefix=PREFIX)
    assert caught.value.param == "limits.kv_bytes"
    assert not list(segment.FOLDER.glob(f"{PREFIX}.*"))


def test_auto_pool_falls_back_aloud(monkeypatch):
    monkeypatch.setattr(segment, "available", lambda: False)
    lines: list[str] = []
    pool = open_pool("auto", LAYOUT, 4, report=lines.append)
    assert isinstance(pool, PrivatePool)
    assert "will use tcp" in lines[0]
    with pytest.raises(RequestError, match="no shared memory"):
        open_pool("shm", LAYOUT, 4)
    with pytest.raises(RequestError, match="needs a pool in shared memory"):
        open_transport("shm", pool)


def test_a_view_outlives_its_pool():
    pool = SharedPool(LAYOUT, 2, prefix=PREFIX)
    view = pool.blocks[1]
    pool.close()
    pool.close()
    view[:] = 3
    assert view.sum() == 3 * LAYOUT.block_bytes
    assert pool.blocks.shape == (0, LAYOUT.block_bytes)


@pytest.mark.parametrize("name", ["", "a/b", "a.b"])
def test_a_prefix_that_would_confuse_names_is_refused(name):
    with pytest.raises(RequestError):
        SharedPool(LAYOUT, 1, prefix=name)


def test_runs_cover_both_sides_in_order():
    source, target = np.array([3, 4, 5, 9, 10, 2]), np.array([0, 1, 7, 8, 9, 10])
    assert runs(source, target, 100) == [(3, 0, 2), (5, 7, 1), (9, 8, 2), (2, 10, 1)]
    assert runs(source, target, 1) == [
        (3, 0, 1),
        (4, 1, 1),
        (5, 7, 1),
        (9, 8, 1),
        (10, 9, 1),
        (2, 10, 1),
    ]
    assert runs(np.arange(7), np.arange(3, 10), 3) == [(0, 3, 3), (3, 6, 3), (6, 9, 1)]
    assert runs(np.array([], np.int64), np.array([], np.int64), 4) == []


@pytest.mark.parametrize("size", [1, 255, 4096, 4097, 12_300])
def test_checksums_see_what_they_promise(size):
    block = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    assert checksum(block, "off") == 0
    whole, sampled = checksum(block, "full"), checksum(block, "sampled")
    for index in range(0, size, 97):
        block[index] ^= 1
        assert checksum(block, "full") != whole
        in_sample = index % 4096 < 256 or index >= size // 4096 * 4096
        assert (checksum(block, "sampled") != sampled) == in_sample
        block[index] ^= 1
