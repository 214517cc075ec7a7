"""Virtual time: callbacks in order of their instant, those of one instant in the order in which they were asked for."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._asked = 0

    def at(self, at_s: float, call: Callable[[Any], None], what: Any) -> int:
        """Call `call(what)` at `at_s`; answers a ticket, by which a caller tells its newest order from older ones."""
        self._asked += 1
        heappush(self._heap, (at_s if at_s > self.now_s else self.now_s, self._asked, call, what))
        return self._asked

    @property
    def next_s(self) -> float:
        return self._heap[0][0] if self._heap else float("inf")

    def step(self) -> bool:
        """One callback; False if none is left. `ticket` is that of the callback that runs."""
        if not self._heap:
            return False
        self.now_s, self.ticket, call, what = heappop(self._heap)
        call(what)
        return True

    ticket = 0
