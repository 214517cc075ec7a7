"""The sequences that decode on one worker, and how long their next steps last.

Decode is advanced in macro-steps: from one change of the batch to the next the time of k steps is a closed form (each reads
as many tokens more as the batch has sequences). So the cost of a run grows with requests, not with tokens.
"""

import math

from mortice.sim.request import SimRequest
from mortice.sim.spread import StepDraws
from mortice.specs.worker_times import WorkerTimes


class DecodeBatch:
    """Who is in it, how much they read, and the macro-step that runs: `num_steps` of them from `start_s` on, at `pace` times
    their expected time. `start_s` lies ahead of now while the step before is still under way."""

    __slots__ = (
        "_base_s", "_context_s", "_members", "_sequence_s", "busy_s", "context", "is_ahead", "joining", "num_steps",
        "pace", "size", "start_s", "steps",
    )  # fmt: skip

    def __init__(self, times: WorkerTimes) -> None:
        self._base_s: float = times.decode_base_s
        self._sequence_s: float = times.decode_sequence_s
        self._context_s: float = times.decode_context_s
        self._members: list[SimRequest] = []  # by their last step, the first to end last
        self.joining: list[SimRequest] = []  # from the next step on
        self.size = 0
        self.context = 0  # tokens of KV that a step reads
        self.steps = 0  # that are over
        self.start_s = 0.0
        self.num_steps = 0  # 0: no step runs
        self.pace = 1.0
        self.is_ahead = False  # the tokens of the step before `start_s` are counted already
        self.busy_s = 0.0

    # -- who is in it -------------------------------------------------------------------------------------------

    def requests(self) -> list[SimRequest]:
        """Those whose steps run, the first to end first."""
        return self._members[::-1]

    def take_in(self) -> None:
        """Who was to join is in the batch of the next step."""
        for request in self.joining:
            self._put(request)
            self.context += request.prompt_len + request.given
        self.size += len(self.joining)
        self.joining.clear()

    def _put(self, request: SimRequest) -> None:
        request.finish_step = finish_step = self.steps + request.output_len - request.given
        members, index = self._members, request.index
        low, high = 0, len(members)
        while low < high:
            middle = (low + high) >> 1
            other = members[middle]
            if other.finish_step > finish_step or (other.finish_step == finish_step and other.index > index):
                low = middle + 1
            else:
                high = middle
        members.insert(low, request)

    def take_out(self, request: SimRequest) -> int:
        """Between two steps, before its last one. Answers the tokens that it was given in the batch."""
        self._members.remove(request)
        return self._leave(request, self.given(request))

    def first_finished(self) -> SimRequest | None:
        """One who has given its last token; None: nobody has."""
        members = self._members
        return members[-1] if members and members[-1].finish_step <= self.steps else None

    def pop_finished(self) -> int:
        """Take out who `first_finished` answered. Answers the tokens that it was given in the batch."""
        request = self._members.pop()
        return self._leave(request, request.output_len)

    def given(self, request: SimRequest) -> int:
        """Tokens that a member has given so far."""
        return request.output_len - (request.finish_step - self.steps)

    def _leave(self, request: SimRequest, given: int) -> int:
        before, request.given = request.given, given
        self.size -= 1
        self.context -= request.prompt_len + given
        return given - before

    # -- how long it takes --------------------------------------------------------------------------------------

    def plan(self, room: int, draws: StepDraws | None, slow: float) -> float:
        """A macro-step from `start_s` on: until the first answer is done, or `room` tokens are, or the pace changes. Answers
        when it ends."""
        steps = self._members[-1].finish_step - self.steps
        most = room // self.size
        if steps > most:
            steps = most
        if draws is None:
            self.pace = slow
        else:
            self.pace = slow * draws.pace(self.start_s, self._expected_s(1) * slow)
            steps = max(1, min(steps, self._within(draws.holds_s(self.start_s) / slow)))
        self.num_steps = steps
        return self.start_s + self.lasts(steps)

    def lasts(self, steps: int) -> float:
        """Seconds of so many steps from `start_s`."""
        return self._expected_s(steps) * self.pace

    def whole_steps(self, now_s: float) -> int:
        """Steps of the macro-step that are over when the one that runs now is."""
        spent_s = now_s - self.start_s
        if spent_s < 0:
            return 0
        spent_s /= self.pace
        steps = self._within(spent_s)
        if steps == 0 or self._expected_s(steps) < spent_s:
            steps += 1
        return steps if steps < self.num_steps else self.num_steps

    def until_boundary(self, now_s: float) -> float:
        """Seconds until the step that runs now is over."""
        left_s = self.start_s + self.lasts(self.whole_steps(now_s)) - now_s
        return left_s if left_s > 0.0 else 0.0

    def book_ahead(self, steps: int) -> int:
        """Count so many steps of the macro-step, the last of which is still under way. Answers the tokens that they give."""
        lasts = self.lasts(steps)
        self.is_ahead = True
        self.start_s += lasts
        self.busy_s += lasts
        return self.advance(steps)

    def advance(self, steps: int) -> int:
        """Each has so many tokens more; answers how many that is."""
        tokens = steps * self.size
        self.steps += steps
        self.context += tokens
        return tokens

    def steps_given(self, now_s: float) -> int:
        """Steps of the macro-step whose tokens went out by now; -1: that before it, which is counted, did not end."""
        spent_s = now_s - self.start_s
        if self.is_ahead and spent_s < 0:
            return -1
        steps = 0
        while steps < self.num_steps and self.lasts(steps + 1) <= spent_s:
            steps += 1
        return steps

    def _expected_s(self, steps: int) -> float:
        read, batch = self._context_s, self.size
        first = self._base_s + self._sequence_s * batch + read * self.context
        return steps * first + read * batch * (steps * (steps - 1) / 2)

    def _within(self, spent_s: float) -> int:
        """Steps that are over after `spent_s` at the expected pace."""
        grow = self._context_s * self.size
        first = self._base_s + self._sequence_s * self.size + self._context_s * self.context
        half = first - grow / 2
        if grow > 0:
            return int((math.sqrt(half * half + 2 * grow * spent_s) - half) / grow)
        return int(spent_s / first) if first else 0

    def check(self) -> int:
        """Tokens that members have given and are booked beside their admissions. Raises AssertionError where the counts of
        the batch are not those of its members."""
        if len(self._members) != self.size:
            raise AssertionError(f"a batch of {self.size} has {len(self._members)} requests")
        grown = context = 0
        for request in self._members:
            given = self.given(request)
            grown += given - request.given
            context += request.prompt_len + given
        if context != self.context:
            raise AssertionError(f"contexts sum to {context}, not {self.context}")
        return grown
