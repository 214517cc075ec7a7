"""Which local blocks are being written by a transfer, so that no two transfers write one block."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from mortice.transport.errors import TransferError


class Landing:
    """The set of blocks under a transfer's pen. One a pool; shared by the transports and servers of its
    process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: set[int] = set()

    @contextmanager
    def claim(self, block_ids: Iterable[int]) -> Iterator[None]:
        """Hold the blocks for the length of the `with`. Raises TransferError if one of them is held
        already."""
        wanted = set(block_ids)
        with self._lock:
            taken = wanted & self._blocks
            if taken:
                raise TransferError(f"block {min(taken)} is being written by another transfer")
            self._blocks |= wanted
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= wanted

    def __len__(self) -> int:
        return len(self._blocks)
