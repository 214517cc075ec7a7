"""The record of which peers are reached how: one line a peer, said aloud when it is first met."""

import threading
from collections.abc import Callable

from mortice.specs.kv import PoolAddress


def silent(_line: str) -> None:
    """A report that nobody reads; `lanes()` still has the line."""


class Lanes:
    """Lines by pool. `report` gets each line once, from the thread that met the peer."""

    def __init__(self, report: Callable[[str], None] = silent) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._lines: dict[str, str] = {}

    def meet(self, peer: PoolAddress, lane: str, probe: Callable[[], tuple[int, float]]) -> None:
        """On first contact run `probe` (moves some bytes; returns how many, in what seconds), record both.

        Nobody waits for another's probe; if it raises, the next contact is the first one again.
        """
        with self._lock:
            if peer.pool_id in self._lines:
                return
            self._lines[peer.pool_id] = f"pool {peer.pool_id[:8]}: {lane}, being probed"
        try:
            num_bytes, seconds = probe()
        except BaseException:
            self.forget(peer.pool_id)
            raise
        rate = num_bytes / seconds / 1e9
        line = f"pool {peer.pool_id[:8]}: {lane}, {rate:.1f} GB/s over {num_bytes >> 10} KiB"
        with self._lock:
            self._lines[peer.pool_id] = line
        self._report(line)

    def forget(self, pool_id: str) -> None:
        with self._lock:
            self._lines.pop(pool_id, None)

    def lines(self) -> list[str]:
        with self._lock:
            return list(self._lines.values())
