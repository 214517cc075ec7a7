"""A worker's own block pool: in shared memory that peers on the host map, or private to the process."""

import mmap
import os
import secrets
import weakref
from pathlib import Path

import numpy as np

from mortice.specs.errors import RequestError
from mortice.specs.kv import ChecksumMode, KVLayout, PoolAddress
from mortice.transport import segment
from mortice.transport.landing import Landing
from mortice.transport.space import AddressSpace, open_space


class SharedPool:
    """Owner's side of a pool in POSIX shared memory. Starts as zeros at generation 0.

    `prefix` starts the segment's name; a cluster uses one prefix and calls `sweep(prefix, live_pids)` after a
    worker died without closing. Raises RequestError where the host's shared memory is missing or too small.
    """

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: int,
        *,
        prefix: str = "mortice",
        checksum: ChecksumMode = "sampled",
    ) -> None:
        _check_size(num_blocks)
        made = segment.create(prefix, secrets.token_hex(16), layout.digest(), num_blocks, layout.block_bytes)
        self._remove = weakref.finalize(self, _remove, made.path, os.getpid())  # at exit, too
        self._closed: np.ndarray | None = made.closed
        self.address = PoolAddress(
            pool_id=made.pool_id,
            num_blocks=num_blocks,
            block_bytes=layout.block_bytes,
            layout_digest=layout.digest(),
            checksum=checksum,
            shm_name=made.path.name,
            host=segment.host_identity(),
        )
        self.space = open_space(self.address)
        self.blocks = made.blocks if self.space is None else self.space.blocks[:num_blocks]
        self.generations = made.generations
        self.landing = Landing()

    def close(self) -> None:
        """Tell peers that have it mapped, remove the name, drop the mapping."""
        if self._closed is not None:
            self._closed[0] = 1
            self._remove()
            self._closed = self.space = None
            self.blocks, self.generations = _nothing(self.address.block_bytes)


class PrivatePool:
    """A pool in memory of this process alone, for transports that need no sharing. Zeros at generation 0."""

    space: AddressSpace | None = None

    def __init__(self, layout: KVLayout, num_blocks: int, *, checksum: ChecksumMode = "sampled") -> None:
        _check_size(num_blocks)
        memory = mmap.mmap(
            -1, num_blocks * layout.block_bytes
        )  # page-aligned, given by the kernel on first touch
        self.blocks = np.frombuffer(memory, np.uint8).reshape(num_blocks, layout.block_bytes)
        self.generations = np.zeros(num_blocks, np.uint64)
        self.landing = Landing()
        self.address = PoolAddress(
            pool_id=secrets.token_hex(16),
            num_blocks=num_blocks,
            block_bytes=layout.block_bytes,
            layout_digest=layout.digest(),
            checksum=checksum,
        )

    def close(self) -> None:
        """Drop the memory."""
        self.blocks, self.generations = _nothing(self.address.block_bytes)


def _check_size(num_blocks: int) -> None:
    if num_blocks < 1:
        raise RequestError(f"a pool has at least one block, not {num_blocks}", param="limits.kv_bytes")


def _nothing(block_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((0, block_bytes), np.uint8), np.empty(0, np.uint64)


def _remove(path: Path, owner: int) -> None:
    """Remove the segment's name, unless this is a fork of its owner."""
    if os.getpid() == owner:
        path.unlink(missing_ok=True)
