"""The seam: what a pool offers, what a transport does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mortice.specs.kv import KVDescriptor, PoolAddress


@dataclass(frozen=True, slots=True)
class TransferResult:
    """`error` is None if every byte landed and was verified; else one line, and the destination blocks are dirty."""

    lease_id: str
    num_bytes: int
    seconds: float
    error: str | None = None


class Pool(Protocol):
    """Memory of a worker's block pool, with the generation counters that its owner keeps beside it."""

    address: PoolAddress
    blocks: np.ndarray  # uint8 [num_blocks, block_bytes]
    generations: (
        np.ndarray
    )  # uint64 [num_blocks]; the owner raises an entry before it gives the block to new content

    def close(self) -> None:
        """Unmap, and unlink what the owner created. Idempotent."""


class KVTransport(Protocol):
    """Moves blocks between the local pool and peers' pools. Never blocks the caller: work runs on its own threads,
    `done` is called exactly once from one of them. A transport that cannot reach the peer reports it through `done`."""

    name: str

    def read(
        self, source: KVDescriptor, skip: int, into: Sequence[int], done: Callable[[TransferResult], None]
    ) -> None:
        """Pull blocks source.blocks[skip:] into local blocks `into` (equal counts). Generations are compared before
        and after the copy, checksums after it where the descriptor has them: a mismatch is an error, never data."""

    def write(
        self, local: Sequence[int], target: KVDescriptor, skip: int, done: Callable[[TransferResult], None]
    ) -> None:
        """Push local blocks into target.blocks[skip:] (equal counts), the generations of the target compared alike."""

    def close(self) -> None:
        """Stop the threads; transfers under way end with an error."""
