"""Virtual time: callbacks in order of their instant, those of one instant in the order in which they were asked for."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._asked = 0
        self.ticket = 0

    def at(self, at_s: float, call: Callable[[Any], None], what: Any) -> int:
        """Call `call(what)` at `at_s`; answers a ticket, by which a caller tells its newest order from older ones."""
        self._asked = asked = self._asked + 1
        heappush(self._heap, (at_s if at_s > self.now_s else self.now_s, asked, call, what))
        return asked

    def run(self, before_s: float) -> None:
        """All callbacks that are due before an instant."""
        heap = self._heap
        while heap and heap[0][0] < before_s:
            self.now_s, self.ticket, call, what = heappop(heap)
            call(what)

    def step(self, before_s: float) -> bool:
        """One callback that is due before an instant; False if there is none. `ticket` is that of the one that runs."""
        heap = self._heap
        if not heap or heap[0][0] >= before_s:
            return False
        self.now_s, self.ticket, call, what = heappop(heap)
        call(what)
        return True

    @property
    def is_over(self) -> bool:
        return not self._heap

    @property
    def num_events(self) -> int:
        """Callbacks asked for so far."""
        return self._asked
