"""Transfers inside one process, in an order and with mishaps that a seed decides: for tests of whoever moves
blocks.

Nothing moves by itself: `MemoryFabric.step` moves one block of one transfer, or ends one, and calls its
`done`. The same seed and the same calls give the same history.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mortice.specs.kv import KVDescriptor
from mortice.transport.base import Pool, TransferResult
from mortice.transport.checksum import checksums
from mortice.transport.descriptor import Plan, check_generations, check_landed, plan
from mortice.transport.errors import PeerGone, TransferError


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities of mishaps: the first two a transfer, the others a block moved."""

    refuse: float = 0.0  # nothing moves, an error comes back
    partial: float = 0.0  # the transfer ends with an error after some of its blocks
    flip: float = 0.0  # a bit of the block changes on its way
    reuse: float = 0.0  # the peer gives one of the transfer's blocks to other content meanwhile
    stall: float = 0.0  # the transfer pauses for this step


class MemoryFabric:
    """Connects the `MemoryTransport`s of one test; the only clock is the number of steps."""

    def __init__(self, seed: int = 0, faults: Faults | None = None) -> None:
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.pools: dict[str, Pool] = {}
        self._under_way: list[_Transfer] = []

    def step(self) -> bool:
        """Move on one transfer, drawn from those under way. False if there is none."""
        if not self._under_way:
            return False
        chosen = self.random.randrange(len(self._under_way))
        transfer = self._under_way[chosen]
        if self.random.random() < self.faults.stall:
            return True
        error = None
        try:
            next(transfer.steps)
            return True
        except StopIteration:
            pass
        except TransferError as failure:
            error = str(failure)
        del self._under_way[chosen]
        num_bytes = 0 if error else transfer.num_bytes
        transfer.done(TransferResult(transfer.lease_id, num_bytes, 0.0, error))
        return True

    def run(self) -> None:
        """Step until nothing is under way."""
        while self.step():
            pass

    def kill(self, pool_id: str) -> None:
        """The owner of the pool dies: transfers with it, under way or to come, end with an error."""
        self.pools.pop(pool_id, None)

    def start(self, transfer: "_Transfer") -> None:
        self._under_way.append(transfer)


@dataclass(frozen=True, slots=True)
class _Transfer:
    lease_id: str
    num_bytes: int
    steps: Iterator[None]
    done: Callable[[TransferResult], None]


class MemoryTransport:
    """Blocks between pools of one fabric (see KVTransport). `done` is called from within
    `MemoryFabric.step`."""

    name = "memory"

    def __init__(self, fabric: MemoryFabric, pool: Pool) -> None:
        self._fabric = fabric
        self._pool = pool
        self._forgotten: set[str] = set()
        self._closed = False
        fabric.pools[pool.address.pool_id] = pool

    def read(
        self, source: KVDescriptor, skip: int, into: Sequence[int], done: Callable[[TransferResult], None]
    ) -> None:
        num_bytes = len(into) * self._pool.address.block_bytes
        steps = self._read(source, skip, list(into))
        self._fabric.start(_Transfer(source.lease_id, num_bytes, steps, done))

    def write(
        self, local: Sequence[int], target: KVDescriptor, skip: int, done: Callable[[TransferResult], None]
    ) -> None:
        num_bytes = len(local) * self._pool.address.block_bytes
        steps = self._write(list(local), target, skip)
        self._fabric.start(_Transfer(target.lease_id, num_bytes, steps, done))

    def forget(self, pool_id: str) -> None:
        self._forgotten.add(pool_id)

    def lanes(self) -> list[str]:
        return [f"pool {pool_id[:8]}: memory" for pool_id in self._fabric.pools]

    def close(self) -> None:
        self._closed = True

    def _read(self, source: KVDescriptor, skip: int, into: list[int]) -> Iterator[None]:
        todo = plan(self._pool, source, skip, into)
        with self._pool.landing.claim(into):
            peer = self._peer(todo)
            check_generations(peer.generations, todo.remote, todo.generations, "before the read")
            for there, here in self._moves(todo, peer):
                self._pool.blocks[here] = peer.blocks[there]
                self._maybe_flip(self._pool, here)
                yield
            peer = self._peer(todo)
            check_generations(peer.generations, todo.remote, todo.generations, "during the read")
            check_landed(self._pool.blocks, todo.local, todo.checksums, source.pool.checksum)

    def _write(self, local: list[int], target: KVDescriptor, skip: int) -> Iterator[None]:
        todo = plan(self._pool, target, skip, local)
        peer = self._peer(todo)
        with peer.landing.claim(todo.remote.tolist()):
            check_generations(peer.generations, todo.remote, todo.generations, "before the write")
            for there, here in self._moves(todo, peer):
                check_generations(peer.generations, todo.remote, todo.generations, "during the write")
                peer.blocks[there] = self._pool.blocks[here]
                self._maybe_flip(peer, there)
                yield
            mode = self._pool.address.checksum
            check_landed(peer.blocks, todo.remote, checksums(self._pool.blocks, local, mode), mode)
            self._peer(todo)
            check_generations(peer.generations, todo.remote, todo.generations, "during the write")

    def _moves(self, todo: Plan, peer: Pool) -> Iterator[tuple[int, int]]:
        """Pairs (remote, local) in an order of the seed, mishaps between them."""
        draw, faults = self._fabric.random, self._fabric.faults
        pairs = list(zip(todo.remote.tolist(), todo.local.tolist(), strict=True))
        draw.shuffle(pairs)
        if draw.random() < faults.refuse:
            raise PeerGone("injected: the transfer was refused")
        last = draw.randrange(len(pairs)) if pairs and draw.random() < faults.partial else None
        for index, pair in enumerate(pairs):
            self._peer(todo)
            if index == last:
                raise PeerGone(f"injected: the transfer broke after {index} of {len(pairs)} blocks")
            if draw.random() < faults.reuse:
                block = draw.choice(pairs)[0]
                peer.generations[block] += 1
                peer.blocks[block] = draw.randrange(256)
            yield pair

    def _maybe_flip(self, pool: Pool, block: int) -> None:
        draw = self._fabric.random
        if draw.random() < self._fabric.faults.flip:
            pool.blocks[block, draw.randrange(pool.blocks.shape[1])] ^= 1 << draw.randrange(8)

    def _peer(self, todo: Plan) -> Pool:
        pool_id = todo.peer.pool_id
        if self._closed:
            raise PeerGone("the transport is closed")
        if pool_id in self._forgotten or pool_id not in self._fabric.pools:
            raise PeerGone("the peer is gone")
        return self._fabric.pools[pool_id]
