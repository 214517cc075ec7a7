"""The largest arrival rate at which the SLO is still attained, by bisection."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise

from mortice.bench.report import reached, share
from mortice.bench.run import Bench
from mortice.bench.stats import wilson


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate that was tried."""

    rate: float  # requests a second
    num_met: int
    num_issued: int
    passed: bool

    def document(self, target: float) -> dict:
        low, high = wilson(self.num_met, self.num_issued)
        return {
            "rate": self.rate,
            "num_met": self.num_met,
            "num_issued": self.num_issued,
            "attainment": share(self.num_met, self.num_issued),
            "ci95": (low, high),
            "passed": self.passed,
            "decided": not low < target <= high,
        }


Try = Callable[[float], Awaitable[tuple[int, int]]]  # rate -> requests that met every limit, requests issued


@dataclass(slots=True)
class GoodputSearch:
    """Bracket by doubling or halving, bisect, then look once above and once below for a response that is not
    monotone.

    `sustained` is the largest rate that passed with no failed rate below it: what can be promised.
    `largest_passed` exceeds it only where attainment came back at a higher rate, which is reported and never
    promised.
    """

    target: float
    tolerance: float = 0.05  # the bracket is closed when its ends are this close, relatively
    max_probes: int = 16
    probes: list[Probe] = field(default_factory=list)

    async def run(self, attempt: Try, start_rate: float) -> None:
        low, high = 0.0, start_rate
        if await self._passes(attempt, start_rate):
            low, high = start_rate, start_rate * 2
            while self._room and await self._passes(attempt, high):
                low, high = high, high * 2
        low, high = await self._close(attempt, low, high)
        if low > 0:
            await self._look_for_islands(attempt, low, high)

    async def _close(self, attempt: Try, low: float, high: float) -> tuple[float, float]:
        """Narrow a bracket whose `high` failed. With `low` 0, nothing passed yet: halve until something
        does."""
        floor = high / 64
        while self._room and low == 0 and high > floor:
            if await self._passes(attempt, high / 2):
                low = high / 2
            else:
                high /= 2
        while self._room and low > 0 and high > low * (1 + self.tolerance):
            middle = (low + high) / 2
            if await self._passes(attempt, middle):
                low = middle
            else:
                high = middle
        return low, high

    async def _look_for_islands(self, attempt: Try, low: float, high: float) -> None:
        above = high * 1.25
        if all(abs(p.rate / above - 1) > 0.05 for p in self.probes):
            await self._passes(attempt, above)
        below = sorted({0.0, *(p.rate for p in self.probes if p.rate <= low)})
        start, end = max(pairwise(below), key=lambda gap: gap[1] - gap[0])
        middle = (start + end) / 2
        if not await self._passes(attempt, middle):
            await self._close(attempt, start, middle)

    @property
    def _room(self) -> bool:
        return len(self.probes) < self.max_probes

    async def _passes(self, attempt: Try, rate: float) -> bool:
        met, issued = await attempt(rate)
        passed = reached(met, issued, self.target)
        self.probes.append(Probe(rate, met, issued, passed))
        return passed

    @property
    def sustained(self) -> float:
        failed = [p.rate for p in self.probes if not p.passed]
        limit = min(failed, default=float("inf"))
        return max((p.rate for p in self.probes if p.passed and p.rate < limit), default=0.0)

    @property
    def largest_passed(self) -> float:
        return max((p.rate for p in self.probes if p.passed), default=0.0)

    def document(self, num_gpus: int) -> dict:
        """The answer and every probe behind it, in the order of rate."""
        failed = [p.rate for p in self.probes if not p.passed]
        first_failed = min(failed, default=None)
        answer = self.sustained
        return {
            "goodput_per_gpu": answer / num_gpus,
            "num_gpus": num_gpus,
            "sustained_rate": answer,
            "first_failed_rate": first_failed,
            "largest_passed_rate": self.largest_passed,
            "monotone": self.largest_passed <= answer,
            "bounded": first_failed is not None,
            "closed": first_failed is not None
            and answer > 0
            and first_failed <= answer * (1 + self.tolerance) + 1e-12,
            "target": self.target,
            "tolerance": self.tolerance,
            "probes": [p.document(self.target) for p in sorted(self.probes, key=lambda p: p.rate)],
        }


async def find_goodput(bench: Bench, search: GoodputSearch, *, start_rate: float, num_gpus: int) -> dict:
    """Run `bench` (already prepared) at the rates the search asks for; the result document of kind
    "goodput"."""
    runs: list[dict] = []

    async def attempt(rate: float) -> tuple[int, int]:
        result, _ = await bench.run(rate, intervals=False)
        runs.append(result)
        return result["slo"]["num_met"], result["num_issued"]

    await search.run(attempt, start_rate)
    first = runs[0]
    found = search.document(num_gpus)
    notes = sorted({note for run in runs for note in run["notes"]})
    if not found["monotone"]:
        notes.append(
            "attainment is not monotone in the rate: a rate above a failed one passed and is not promised"
        )
    if not found["bounded"]:
        notes.append("no rate that was tried failed: the goodput is at least this")
    unsure = [probe["rate"] for probe in found["probes"] if not probe["decided"]]
    if unsure:
        rates = ", ".join(f"{rate:.3g}" for rate in unsure)
        notes.append(f"too few requests to be sure at {rates} req/s: the interval holds the target")
    kept = ("mortice", "started_at", "base_url", "model", "api", "request")
    workload = {name: value for name, value in first["workload"].items() if name != "rate"}
    return {
        "kind": "goodput",
        **{name: first[name] for name in kept},
        "workload": workload,
        "slo": {"limits": first["slo"]["limits"]},
        "goodput": found,
        "void": any(run["void"] for run in runs),
        "notes": notes,
        "runs": runs,
    }
