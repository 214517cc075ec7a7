"""A link that is shared fairly: k transfers at once each take k times as long (processor sharing by virtual time)."""

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any

from mortice.sim.clock import Clock


class Link:
    """One direction of one worker's port. `bytes_per_s` 0: no limit."""

    __slots__ = (
        "_active",
        "_at_s",
        "_clock",
        "_is_through",
        "_sent",
        "_served",
        "_ticket",
        "bytes_per_s",
        "is_cut",
    )

    def __init__(self, clock: Clock, bytes_per_s: float) -> None:
        self._clock = clock
        self.bytes_per_s = bytes_per_s
        self.is_cut = False
        self._served = 0.0  # bytes that a transfer present all along would have got
        self._at_s = 0.0
        self._active: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._ticket = -1
        self._sent = 0  # breaks ties by order of sending
        self._is_through = self._through

    def __len__(self) -> int:
        return len(self._active)

    def send(
        self, num_bytes: float, done: Callable[[Any], None], what: Any, *, watched: bool = False
    ) -> None:
        """`done(what)` when the last byte is through. A `watched` transfer that stays alone on the link says nothing by
        itself: its owner polls."""
        clock = self._clock
        if (self.bytes_per_s <= 0 and not self.is_cut) or num_bytes <= 0:
            if not watched:
                clock.at(clock.now_s, done, what)
            return
        self._sent += 1
        if not self._active:  # alone, as most are
            self._served, self._at_s = 0.0, clock.now_s
            self._active.append((num_bytes, self._sent, done, what))
        else:
            self._serve()
            heappush(self._active, (self._served + num_bytes, self._sent, done, what))
            watched = False
        if not watched:
            self._plan()

    def poll(self, what: Any) -> bool:
        """Whether a watched transfer is through; if not, it will say so."""
        if not self._active:
            return not self.is_cut
        self._serve()
        head = self._active[0]
        if head[3] is what and not self.is_cut and head[0] <= self._served * (1 + 1e-12) + 1e-6:
            heappop(self._active)
            if self._active:
                self._plan()
            else:
                self._ticket = -1
            return True
        waits = any(entry[3] is what for entry in self._active)
        if waits and self._ticket == -1:
            self._plan()
        return not waits

    def cut(self) -> None:
        """Nothing moves until `mend`."""
        self._serve()
        self.is_cut = True
        self._ticket = -1

    def mend(self) -> None:
        self._at_s = self._clock.now_s
        self.is_cut = False
        self._plan()

    def drop(self, what: Any) -> None:
        """Forget a transfer; the others get its share."""
        self._serve()
        self._active = [entry for entry in self._active if entry[3] is not what]
        heapify(self._active)
        self._plan()

    def _serve(self) -> None:
        now_s = self._clock.now_s
        if self._active and not self.is_cut and self.bytes_per_s > 0:
            self._served += (now_s - self._at_s) * self.bytes_per_s / len(self._active)
        self._at_s = now_s

    def _plan(self) -> None:
        if not self._active or self.is_cut:
            self._ticket = -1
            return
        left = self._active[0][0] - self._served
        if left < 0.0:
            left = 0.0
        clock, rate = self._clock, self.bytes_per_s or math.inf
        self._ticket = clock.at(clock.now_s + left * len(self._active) / rate, self._is_through, None)

    def _through(self, _: None) -> None:
        if self._clock.ticket != self._ticket:
            return  # the plan changed since
        if len(self._active) == 1:
            self._ticket = -1
            through = self._active.pop()
        else:
            self._serve()
            through = heappop(self._active)
            self._plan()
        through[2](through[3])
