"""Virtual time: callbacks in order of their instant, those of one instant in the order in which they were asked for.

What is due soon stands in a sorted list, the rest in buckets of time that are sorted when their turn comes: a heap of all
that ten thousand workers have to come is too large for a processor's cache, and every look at it would wait for memory.
"""

from bisect import insort
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

FEW, MANY = 8, 2048  # callbacks of a bucket, beyond which its width is changed

Due = tuple[float, int, Callable[[Any], None], Any]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.ticket = 0
        self._asked = 0
        self._soon: list[Due] = []  # what is due in bucket `_bucket` and before, from `_done` on, in order
        self._done = 0
        self._bucket = 0
        self._width_s = 0.01
        self._later: dict[int, list[Due]] = {}  # by bucket, unordered
        self._buckets: list[int] = []  # heap of the keys of `_later`
        self._meagre = 0  # buckets in a row that had few

    def at(self, at_s: float, call: Callable[[Any], None], what: Any) -> int:
        """Call `call(what)` at `at_s`; answers a ticket, by which a caller tells its newest order from older ones."""
        self._asked = asked = self._asked + 1
        if at_s < self.now_s:
            at_s = self.now_s
        due = (at_s, asked, call, what)
        bucket = int(at_s / self._width_s)
        if bucket <= self._bucket:
            insort(self._soon, due, self._done)
        else:
            self._put_off(bucket, due)
        return asked

    def run(self, before_s: float) -> None:
        """All callbacks that are due before an instant."""
        while self.step(before_s):
            soon = self._soon
            while self._done < len(soon) and soon[self._done][0] < before_s:
                self.now_s, self.ticket, call, what = soon[self._done]
                self._done += 1
                call(what)

    def step(self, before_s: float) -> bool:
        """One callback that is due before an instant; False if there is none. `ticket` is that of the one that runs."""
        if self._done == len(self._soon):
            if not self._buckets:
                return False
            if self._buckets[0] * self._width_s >= before_s + self._width_s:
                return False  # not worth a look
            self._take_bucket()
        due = self._soon[self._done]
        if due[0] >= before_s:
            return False
        self._done += 1
        self.now_s, self.ticket, call, what = due
        call(what)
        return True

    @property
    def is_over(self) -> bool:
        return self._done == len(self._soon) and not self._buckets

    @property
    def num_events(self) -> int:
        """Callbacks asked for so far."""
        return self._asked

    def _put_off(self, bucket: int, due: Due) -> None:
        there = self._later.get(bucket)
        if there is None:
            self._later[bucket] = [due]
            heappush(self._buckets, bucket)
        else:
            there.append(due)

    def _take_bucket(self) -> None:
        """The next bucket is what is due soon. Buckets that are too full or too empty are cut anew."""
        self._bucket = heappop(self._buckets)
        self._soon = self._later.pop(self._bucket)
        self._soon.sort()
        self._done = 0
        self._meagre = self._meagre + 1 if len(self._soon) < FEW else 0
        if len(self._soon) > MANY:
            self._cut_anew(self._width_s / 8)
        elif self._meagre > 64 and len(self._later) > 64:
            self._cut_anew(self._width_s * 8)

    def _cut_anew(self, width_s: float) -> None:
        dues = [due for bucket in self._later.values() for due in bucket] + self._soon
        self._width_s, self._meagre = width_s, 0
        self._later, self._soon, self._buckets, self._done = {}, [], [], 0
        self._bucket = int(min(dues)[0] / width_s)
        for due in dues:
            bucket = int(due[0] / width_s)
            if bucket <= self._bucket:
                self._soon.append(due)
            else:
                self._put_off(bucket, due)
        self._soon.sort()
