"""How long decode steps last, in closed form: each reads as many tokens more as the batch has sequences."""

import math

from mortice.specs.worker_times import WorkerTimes


class DecodeSteps:
    """Steps of one batch in a row. Seconds at the expected pace; `context`: tokens that the first step reads."""

    __slots__ = ("_base_s", "_context_s", "_sequence_s")

    def __init__(self, times: WorkerTimes) -> None:
        self._base_s: float = times.decode_base_s
        self._sequence_s: float = times.decode_sequence_s
        self._context_s: float = times.decode_context_s

    def last(self, steps: int, batch: int, context: int) -> float:
        """Seconds of so many steps."""
        read = self._context_s
        first = self._base_s + self._sequence_s * batch + read * context
        return steps * first + read * batch * (steps * (steps - 1) / 2)

    def within(self, spent_s: float, batch: int, context: int) -> int:
        """Steps that are over after `spent_s`."""
        first = self._base_s + self._sequence_s * batch + self._context_s * context
        grow = self._context_s * batch
        half = first - grow / 2
        if grow > 0:
            return int((math.sqrt(half * half + 2 * grow * spent_s) - half) / grow)
        return int(spent_s / first) if first else 0

    def until(self, spent_s: float, batch: int, context: int) -> int:
        """Steps that are over when the one that runs after `spent_s` is; at least one."""
        steps = self.within(spent_s, batch, context)
        if steps == 0 or self.last(steps, batch, context) < spent_s:
            steps += 1
        return steps
