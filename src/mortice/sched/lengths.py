"""What lengths to expect: means over the last requests, so many that chance does not pass for a change of the mix.

A mean over an interval is that of 30 requests here and of 30,000 there. Sums that leak by the number of requests weigh the
same number of them everywhere.
"""

from mortice.sched.observation import Demand, Observation

MEMORY = 100.0  # requests after which what was before weighs half, at least
FIRST_GUESS_OUTPUT = 64.0  # tokens, until a request ended


class Lengths:
    def __init__(self) -> None:
        self._num = self._prompts = self._uncached = self._squares = 0.0
        self._given = self._ended = 0.0
        self._outputs = self._output_squares = 0.0
        self._judged = self._met = 0.0

    def add(self, seen: Observation) -> None:
        """An interval whose figures can be trusted."""
        n = seen.num_arrived
        keep = MEMORY / (MEMORY + n)
        self._num = keep * self._num + n
        self._prompts = keep * self._prompts + n * seen.prompt_mean
        self._uncached = keep * self._uncached + n * seen.uncached_mean
        self._squares = keep * self._squares + n * seen.uncached_square
        keep = MEMORY / (MEMORY + max(n, seen.num_ended))
        self._given = keep * self._given + seen.num_given
        self._ended = keep * self._ended + seen.num_ended
        fade = MEMORY / (MEMORY + seen.num_ended)
        self._judged = fade * self._judged + seen.num_ended
        self._met = fade * self._met + seen.num_met
        self._outputs = keep * self._outputs + seen.num_ended * seen.output_mean
        self._output_squares = keep * self._output_squares + seen.num_ended * seen.output_square

    @property
    def share_met(self) -> float:
        """Share of the last requests that ended within the SLO; 1 before any has."""
        return self._met / self._judged if self._judged else 1.0

    def demand(self, rate: float) -> Demand:
        """The mix at a rate. Lengths of 0: nothing arrived yet."""
        num = self._num or 1.0
        uncached = self._uncached / num
        return Demand(
            rate=rate,
            prompt_mean=self._prompts / num,
            uncached_mean=uncached,
            uncached_square=max(self._squares / num, uncached**2),
            # Answers that ended since a change are the short ones; tokens over ends counts those under way, too.
            output_mean=1 + self._given / max(1.0, self._ended) if self._given else FIRST_GUESS_OUTPUT,
            output_uneven=max(1.0, self._output_squares * self._ended / self._outputs**2)
            if self._outputs
            else 1.0,
        )
