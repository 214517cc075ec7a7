"""What the control loop sees of one interval, and the tally that it is taken from."""

import math

import msgspec

from mortice.sched.fleet import ROLES, Fleet, Role


class Observation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One interval that ended at `at_s`. Lengths are means over the interval (0: nothing to average); no field knows the
    output length of a request that has not ended. A figure that could not be had is NaN, never 0."""

    at_s: float
    interval_s: float
    num_arrived: int = 0
    prompt_mean: float = 0.0  # tokens, of arrivals
    uncached_mean: float = 0.0  # of it, tokens to be computed
    uncached_square: float = 0.0  # mean of their squares
    output_mean: float = 0.0  # tokens, of requests that ended
    output_square: float = 0.0  # mean of their squares
    num_given: float = (
        0.0  # tokens decoded, of all requests: those that decode, times the interval, over the mean TPOT
    )
    num_ended: int = 0
    num_met: int = 0  # of them, within the SLO
    ttft_p90_s: float = 0.0
    tpot_p90_s: float = 0.0
    prefill_work: float = 0.0  # queued in prefill and mixed workers, in the router's unit
    num_prefilling: int = 0
    num_decoding: int = 0
    kv_use: float = 0.0  # of the fullest decode pool: context tokens given to it over what it holds
    slowdown: float = 1.0  # measured step over expected, of the median worker
    report_age_s: float = 0.0  # of the oldest word of a worker
    num_spoiled: int = 0  # reports that were no numbers
    prefill: int = 0  # workers that accept requests, by role
    decode: int = 0
    mixed: int = 0
    starting: dict[Role, int] = {}
    draining: int = 0

    def fault(self, stale_s: float = 30.0) -> str:
        """Why these figures must not be acted on; "" if they may. A gap in the metrics is not an absence of load."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float | int) and name != "at_s" and (not math.isfinite(value) or value < 0):
                return f"{name} is {value}"
        if self.interval_s <= 0:
            return "the interval is empty"
        if self.num_spoiled:
            return f"{self.num_spoiled} reports were no numbers"
        if self.report_age_s > stale_s:
            return f"the oldest report is {self.report_age_s:.0f} s old"
        return ""

    @property
    def rate(self) -> float:
        """Arrivals a second."""
        return self.num_arrived / self.interval_s


class Tally:
    """Counts what happens between two observations."""

    def __init__(self, ttft_s: float = math.inf, tpot_s: float = math.inf) -> None:
        self._ttft_s, self._tpot_s = ttft_s, tpot_s
        self._step_s = 0.0  # between two tokens of a request, the latest that is known
        self._was_decoding = 0
        self._reset()

    def _reset(self) -> None:
        self.num_arrived = self.num_ended = self.num_met = 0
        self._prompts = self._uncached = self._squares = 0.0
        self._outputs = self._output_squares = 0.0
        self._decoded = self._decoding_s = 0.0  # tokens after the first, and how long they took
        self._ttft: list[float] = []
        self._tpot: list[float] = []

    def arrived(self, prompt_len: int, uncached: int) -> None:
        self.num_arrived += 1
        self._prompts += prompt_len
        self._uncached += uncached
        self._squares += float(uncached) * uncached

    def ended(self, output_len: int, ttft_s: float, tpot_s: float | None) -> None:
        """A request is over; one that failed or was rejected has ttft_s infinite."""
        self.num_ended += 1
        self._outputs += output_len
        self._output_squares += float(output_len) * output_len
        self._ttft.append(ttft_s)
        if tpot_s is not None:
            self._tpot.append(tpot_s)
            self._decoded += output_len - 1
            self._decoding_s += tpot_s * (output_len - 1)
        self.num_met += ttft_s <= self._ttft_s and (tpot_s is None or tpot_s <= self._tpot_s)

    def observe(
        self, at_s: float, interval_s: float, fleet: Fleet, starting: dict[Role, int], block_size: int
    ) -> Observation:
        """The interval's figures; the next one begins."""
        workers = list(fleet.workers.values())
        n, ended = max(1, self.num_arrived), max(1, self.num_ended)
        held = {
            role: sum(w.num_blocks for w in workers if w.role == role) * block_size
            for role in ("decode", "mixed")
        }
        used = {role: sum(w.context_tokens for w in workers if w.role == role) for role in held}
        slow = sorted(w.slowdown for w in workers)
        if self._decoding_s > 0:
            self._step_s = self._decoding_s / self._decoded
        decoding = sum(w.num_decoding for w in workers)
        sequence_s = (self._was_decoding + decoding) / 2 * interval_s
        self._was_decoding = decoding
        counts = {role: fleet.num(role) for role in ROLES}
        seen = Observation(
            at_s=at_s,
            interval_s=interval_s,
            num_arrived=self.num_arrived,
            prompt_mean=self._prompts / n,
            uncached_mean=self._uncached / n,
            uncached_square=self._squares / n,
            output_mean=self._outputs / ended,
            output_square=self._output_squares / ended,
            num_given=sequence_s / self._step_s if self._step_s else 0.0,
            num_ended=self.num_ended,
            num_met=self.num_met,
            ttft_p90_s=_p90(self._ttft),
            tpot_p90_s=_p90(self._tpot),
            prefill_work=sum(w.prefill_work for w in workers),
            num_prefilling=sum(w.num_prefilling for w in workers),
            num_decoding=decoding,
            kv_use=max((used[role] / held[role] for role in held if held[role]), default=0.0),
            slowdown=slow[len(slow) // 2] if slow else 1.0,
            starting=starting,
            draining=sum(not w.accepts for w in workers),
            **counts,
        )
        self._reset()
        return seen


def _p90(values: list[float]) -> float:
    finite = sorted(v if math.isfinite(v) else 1e9 for v in values)
    return finite[min(len(finite) - 1, math.ceil(0.9 * len(finite)) - 1)] if finite else 0.0


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What is expected over the horizon: requests a second and their lengths in tokens."""

    rate: float
    prompt_mean: float
    uncached_mean: float
    uncached_square: float
    output_mean: float
    output_uneven: float = 1.0  # E[O^2] / E[O]^2
    source: str = "forecast"


class Target(msgspec.Struct, frozen=True):
    """Workers wanted by role. `reason` says by which term; `score` orders targets of one policy (larger is better)."""

    prefill: int
    decode: int
    mixed: int = 0
    reason: str = ""
    score: float = 0.0

    def count(self, role: Role) -> int:
        return int(getattr(self, role))

    @property
    def name(self) -> str:
        return f"{self.prefill}P{self.decode}D" + (f"{self.mixed}M" if self.mixed else "")
