"""Transfers between pools in one host's shared memory: one memcpy a run of blocks, no buffer, no message.

The peer takes no part: it may compute, sleep or be dead. A seqlock guards what is read: its generation
counters are compared before and after the copy. That is sound where the machine keeps loads in order (x86);
elsewhere checksums are what proves the bytes, so pools there must not switch them off.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from mortice.specs.kv import KVDescriptor
from mortice.transport.base import Pool, TransferResult
from mortice.transport.checksum import checksums
from mortice.transport.copy import copy_blocks
from mortice.transport.descriptor import Plan, check_generations, check_landed, plan
from mortice.transport.errors import PeerGone, TransferError
from mortice.transport.hands import Hands
from mortice.transport.lanes import Lanes, silent
from mortice.transport.ordering import LOADS_IN_ORDER
from mortice.transport.peers import PeerPool, PeerPools

PROBE_BYTES = 4 << 20


class ShmTransport:
    """Blocks between `pool` and pools of peers on the same host (see KVTransport).

    `verify` False leaves out checksums that descriptors offer; generations are compared always. The local
    pool may be private for `read` and `write`: only the peer's pool must be shared.
    """

    name = "shm"

    def __init__(
        self, pool: Pool, *, verify: bool = True, num_threads: int = 1, report: Callable[[str], None] = silent
    ) -> None:
        self._pool = pool
        self._verify = verify
        self._peers = PeerPools()
        self._lanes = Lanes(report)
        self._hands = Hands("kv-shm", num_threads)

    def read(
        self, source: KVDescriptor, skip: int, into: Sequence[int], done: Callable[[TransferResult], None]
    ) -> None:
        self._hands.submit(source.lease_id, lambda: self._read(source, skip, into), done)

    def write(
        self, local: Sequence[int], target: KVDescriptor, skip: int, done: Callable[[TransferResult], None]
    ) -> None:
        self._hands.submit(target.lease_id, lambda: self._write(local, target, skip), done)

    def forget(self, pool_id: str) -> None:
        self._peers.forget(pool_id)
        self._lanes.forget(pool_id)

    def lanes(self) -> list[str]:
        return self._lanes.lines()

    def close(self) -> None:
        self._hands.close()
        self._peers.clear()

    def _read(self, source: KVDescriptor, skip: int, into: Sequence[int]) -> int:
        todo = plan(self._pool, source, skip, into)
        if not todo.num_bytes:
            return 0
        if not LOADS_IN_ORDER and not (self._verify and all(todo.checksums)):
            raise TransferError("this machine reorders loads: reads need checksums, set transfer.checksum")
        with self._pool.landing.claim(todo.local.tolist()):
            peer = self._peer(todo, writable=False)
            check_generations(peer.generations, todo.remote, todo.generations, "before the read")
            copy_blocks(
                peer.blocks,
                todo.remote,
                self._pool.blocks,
                todo.local,
                lambda: self._pause(peer, source.pool.pool_id),
            )
            peer.check_open()
            check_generations(peer.generations, todo.remote, todo.generations, "during the read")
            if self._verify:
                check_landed(self._pool.blocks, todo.local, todo.checksums, source.pool.checksum)
        return todo.num_bytes

    def _write(self, local: Sequence[int], target: KVDescriptor, skip: int) -> int:
        todo = plan(self._pool, target, skip, local)
        if not todo.num_bytes:
            return 0
        peer = self._peer(todo, writable=True)
        check_generations(peer.generations, todo.remote, todo.generations, "before the write")
        copy_blocks(
            self._pool.blocks,
            todo.local,
            peer.blocks,
            todo.remote,
            lambda: self._pause(peer, target.pool.pool_id),
        )
        if self._verify:
            mode = self._pool.address.checksum
            sent = checksums(self._pool.blocks, todo.local.tolist(), mode)
            check_landed(peer.blocks, todo.remote, sent, mode)
        peer.check_open()
        check_generations(peer.generations, todo.remote, todo.generations, "during the write")
        return todo.num_bytes

    def _peer(self, todo: Plan, *, writable: bool) -> PeerPool:
        peer = self._peers.get(todo.peer, writable=writable)
        peer.check_open()
        self._lanes.meet(todo.peer, self.name, lambda: _probe(peer))
        return peer

    def _pause(self, peer: PeerPool, pool_id: str) -> None:
        self._hands.pause()
        peer.check_open()
        if self._peers.forgotten(pool_id):
            raise PeerGone("the peer is gone")


def _probe(peer: PeerPool) -> tuple[int, float]:
    """Copy some of the peer's memory out, to see how fast that goes."""
    sample = peer.blocks[: max(1, PROBE_BYTES // peer.blocks.shape[1])]
    landing = np.empty_like(sample)
    np.copyto(landing, sample)  # page faults of the landing place are no property of the lane
    begun = time.perf_counter()
    np.copyto(landing, sample)
    return sample.nbytes, time.perf_counter() - begun
