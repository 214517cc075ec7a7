"""CPU time of runs as the host was charged for it: a guest's own clocks may count by ticks, and belong to the guest."""

from collections.abc import Callable


class CpuMeter:
    """Shares out what a machine has used among the runs under way in it; what it uses between runs belongs to none.

    `total` gives the seconds that the host has charged to the machine so far, or None where it cannot be told.
    """

    def __init__(self, total: Callable[[], float | None]) -> None:
        self._total = total
        self._at = 0.0
        self._runs: dict[str, float] = {}

    def begin(self, run: str) -> None:
        self._settle()
        self._runs[run] = 0.0

    def end(self, run: str) -> float | None:
        """Seconds of this run: all that was used while it was alone, an equal share while others ran too."""
        known = self._settle()
        used = self._runs.pop(run)
        return used if known else None

    def _settle(self) -> bool:
        now = self._total()
        if now is None:
            return False
        for run in self._runs:
            self._runs[run] += (now - self._at) / len(self._runs)
        self._at = now
        return True
