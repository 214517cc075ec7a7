"""Owners killed while their blocks are read or written: the bytes are exact or the transfer is an error."""

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mortice.specs.kv import KVDescriptor
from mortice.transport import copy, segment, wire
from mortice.transport.base import TransferResult
from mortice.transport.choose import open_pool, open_transport

SCRIPT = Path(__file__).with_name("transport_owner.py")
_spec = importlib.util.spec_from_file_location("transport_owner", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
owner_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(owner_module)
LAYOUT, NUM_BLOCKS, TOKEN = owner_module.LAYOUT, owner_module.NUM_BLOCKS, owner_module.TOKEN
PREFIX = f"mortice-chaos-{os.getpid()}"
KINDS = [
    pytest.param(
        "shm", marks=pytest.mark.skipif(not segment.available(), reason="no POSIX shared memory here")
    ),
    "tcp",
    pytest.param(
        "nixl", marks=pytest.mark.skipif(not importlib.util.find_spec("nixl_cu13"), reason="needs nixl-cu13")
    ),
]


class Owner:
    """The other process."""

    def __init__(self, kind: str, num_blocks: int = NUM_BLOCKS) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), kind, PREFIX, str(num_blocks)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"UCX_NET_DEVICES": "lo", "NIXL_LOG_LEVEL": "FATAL"},
        )
        self.source = msgspec.json.decode(self._line(), type=KVDescriptor)

    def ask(self, line: str) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith(("{", *"0123456789")):
            assert line  # a library may talk on stdout; an end of file is an owner that failed
        return line


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UCX_NET_DEVICES", "lo")
    yield
    segment.sweep(PREFIX, set())
    assert not segment.available() or not list(segment.FOLDER.glob(f"{PREFIX}.*"))


def wait(call: Callable[[Callable[[TransferResult], None]], None]) -> TransferResult:
    """Run one transfer and return its only result."""
    ended, results = threading.Event(), []

    def done(result: TransferResult) -> None:
        results.append(result)
        ended.set()

    call(done)
    assert ended.wait(30)
    assert len(results) == 1
    return results[0]


@pytest.mark.parametrize("percent", [1, 50, 99])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_read_from_an_owner_killed_on_the_way_is_exact_or_an_error(kind, percent, monkeypatch):
    owner = Owner(kind)
    pool = open_pool(kind, LAYOUT, NUM_BLOCKS, prefix=PREFIX)
    monkeypatch.setattr(copy, "CHUNK_BYTES", LAYOUT.block_bytes)
    monkeypatch.setattr(wire, "CHUNK_BYTES", LAYOUT.block_bytes)
    transport = open_transport(kind, pool, token=TOKEN)
    seen = 0

    def count_block() -> None:
        nonlocal seen
        seen += 1
        if seen == max(1, NUM_BLOCKS * percent // 100):
            owner.kill()

    if kind == "shm":
        monkeypatch.setattr(transport._hands, "pause", count_block)
    else:
        receive = wire.Link.receive_into

        def receive_into(link: wire.Link, data: memoryview, **options: bool) -> None:
            receive(link, data, **options)
            if len(data) == LAYOUT.block_bytes:
                count_block()

        monkeypatch.setattr(wire.Link, "receive_into", receive_into)
    blocks = list(reversed(range(NUM_BLOCKS)))  # no run of two, so each block is a step of its own
    result = wait(lambda done: transport.read(owner.source, 0, blocks, done))
    assert owner.process.poll() is not None
    assert len(pool.landing) == 0
    if result.error is None:
        assert np.array_equal(pool.blocks[blocks], owner_module.content(NUM_BLOCKS))
    if kind == "shm":  # memory of the dead stays, and its promise with it
        assert result.error is None
    elif percent < 99:
        assert "connection" in str(result.error)
    transport.forget(owner.source.pool.pool_id)
    again = wait(lambda done: transport.read(owner.source, 0, blocks, done))
    assert "gone" in str(again.error)

    second = Owner(kind)  # the landing place of the broken transfer serves the next one
    retry = wait(lambda done: transport.read(second.source, 0, blocks, done))
    assert retry.error is None
    assert np.array_equal(pool.blocks[blocks], owner_module.content(NUM_BLOCKS))
    transport.close()
    pool.close()
    owner.end()
    second.end()


@pytest.mark.parametrize("kind", KINDS)
def test_transfers_with_the_dead_are_errors_and_their_memory_is_swept(kind):
    owner = Owner(kind, 16)
    pool = open_pool(kind, LAYOUT, 16, prefix=PREFIX)
    transport = open_transport(kind, pool, token=TOKEN)
    assert wait(lambda done: transport.read(owner.source, 4, list(range(12)), done)).error is None
    assert np.array_equal(pool.blocks[:12], owner_module.content(16)[4:])
    assert wait(lambda done: transport.write([0], owner.source, 15, done)).error is None
    assert owner.ask("sum 15") == int(pool.blocks[0].sum())
    owner.ask("raise 3")
    stale = wait(lambda done: transport.read(owner.source, 0, list(range(16)), done))
    assert "block 3" in str(stale.error)
    owner.kill()
    if kind == "shm":
        assert segment.sweep(PREFIX, {os.getpid()}) == [owner.source.pool.shm_name]
        transport.forget(owner.source.pool.pool_id)
    for _ in range(2):
        assert wait(lambda done: transport.read(owner.source, 4, list(range(12)), done)).error is not None
        assert wait(lambda done: transport.write([0], owner.source, 15, done)).error is not None
    transport.close()
    pool.close()
    owner.end()


@pytest.mark.parametrize("kind", KINDS)
def test_a_passive_owner_serves_while_its_main_thread_computes_nothing(kind):
    owner = Owner(kind, 16)  # waits for a line on stdin all the time
    pool = open_pool(kind, LAYOUT, 16, prefix=PREFIX)
    transport = open_transport(kind, pool, token=TOKEN)
    into = [5, 4, 3, 9, 10, 11, 0, 1, 2, 15, 14, 13, 6, 7, 8, 12]  # runs on one side only, on both, on none
    for _ in range(20):
        assert wait(lambda done: transport.read(owner.source, 0, into, done)).error is None
    assert np.array_equal(pool.blocks[into], owner_module.content(16))
    pool.blocks[:] = np.arange(16, dtype=np.uint8)[:, None]
    assert wait(lambda done: transport.write(into, owner.source, 0, done)).error is None
    sums = [owner.ask(f"sum {block}") for block in range(16)]
    assert sums == [block * LAYOUT.block_bytes for block in into]
    assert len(transport.lanes()) == 1
    transport.close()
    pool.close()
    owner.end()
