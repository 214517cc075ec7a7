"""The seam: what a pool offers, what a transport does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mortice.specs.kv import KVDescriptor, PoolAddress
from mortice.transport.landing import Landing
from mortice.transport.space import AddressSpace


@dataclass(frozen=True, slots=True)
class TransferResult:
    """`error` is None if every byte landed and was verified; else one line, and the destination blocks are
    dirty.

    `num_bytes` counts the bytes of KV that were moved (0 with an error), `seconds` runs from the call to the
    result, queueing included. `num_corrupt` blocks had a wrong checksum.
    """

    lease_id: str
    num_bytes: int
    seconds: float
    error: str | None = None
    num_corrupt: int = 0


class Pool(Protocol):
    """Memory of a worker's block pool, with the generation counters that its owner keeps beside it."""

    address: PoolAddress  # a transport that serves the pool adds its own field when it opens
    blocks: np.ndarray  # uint8 [num_blocks, block_bytes], C-contiguous, page-aligned
    generations: (
        np.ndarray
    )  # uint64 [num_blocks]; the owner raises an entry before it gives the block to new content
    landing: Landing  # blocks that a transfer is writing now
    space: AddressSpace | None  # where peers' blocks can be read beside our own; None where they cannot

    def close(self) -> None:
        """Unlink what the owner created and drop the mapping. Idempotent. Memory that a view (a tensor) still
        shows lives as long as the view."""


class KVTransport(Protocol):
    """Moves blocks between the local pool and peers' pools. Never blocks the caller: work runs on its own
    threads, `done` is called exactly once from one of them (from the caller's where the transport is closed
    already). What goes wrong, a peer that cannot be reached among it, is reported through `done`; no call
    raises for it.

    Local blocks belong to the transfer from the call to `done`: their owner neither writes them nor gives
    them away. A block offered as the target of a peer's write belongs to that peer until it says that it is
    done or is dead: memory written from one side has no other guard, a raised generation tells the writer of
    it only afterwards.
    """

    name: str

    def read(
        self, source: KVDescriptor, skip: int, into: Sequence[int], done: Callable[[TransferResult], None]
    ) -> None:
        """Pull blocks source.blocks[skip:] into local blocks `into` (equal counts). Generations are compared
        before and after the copy, checksums after it where the descriptor has them: a mismatch is an error,
        never data."""

    def write(
        self, local: Sequence[int], target: KVDescriptor, skip: int, done: Callable[[TransferResult], None]
    ) -> None:
        """Push local blocks into target.blocks[skip:] (equal counts), the generations of the target compared
        alike. Where the local pool checksums, what landed is compared with what was sent."""

    def forget(self, pool_id: str) -> None:
        """The owner of this pool is gone: drop its mapping or connections. Transfers with it end with an
        error; memory of a dead peer that was already copied and verified stays good."""

    def lanes(self) -> list[str]:
        """One printable line a peer met so far: which lane, why, and what the probe measured."""

    def close(self) -> None:
        """Stop the threads; transfers under way or queued end with an error. Idempotent."""
