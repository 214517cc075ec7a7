"""Placement search: how many instances of which layout prefill and decode, or do both, for one workload and SLO.

    high      DistServe's Algorithm 1: each phase by itself, against its own limit, then as many as the rate asks
    low       its Algorithm 2: pairs whose segments share a node, jointly
    joint     what its code does: one prefill and one decode instance, jointly, no replication
    mortice   all divisions of all devices on length distributions, undivided ones among them

Every figure is simulated on the same draws; candidates that closed forms rule out are not simulated, and one that is clearly
behind after its first draw gets no more. The answer is a deployment document.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import cache
from typing import Literal

import msgspec

from mortice.plan.place_candidates import Candidate, Question, Shape, pair, undivided
from mortice.sim.deployed import plan_of
from mortice.sim.evaluate import Goodput, Sample, attainment_at, carried, draw, goodput
from mortice.sim.plan import Plan
from mortice.specs.cluster import ClusterSpec
from mortice.specs.deployment import Deployment
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes
from mortice.specs.workload import TraceRequest

Algorithm = Literal["mortice", "high", "low", "joint"]
KEEP = 8  # candidates that are simulated, of each kind
DRAWS = 3  # of the finalists
LASTING = 10  # TTFT limits that a sample must last at the expected rate: in less no queue shows what it does;
ANSWERS = 2  # and of the longest mean answers that TPOT allows
LONGEST = 1 << 16  # requests of a sample that was made longer
NEAR = 0.92  # of the best goodput: who is nearer gets more draws
T95 = {1: 0.0, 2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t for the mean of so many draws


Job = tuple[Deployment, Sample, SLO, float, float]  # what, on which draw, within what, expected rate, floor


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: the best first. `tied` names those whose interval overlaps the best one's."""

    algorithm: Algorithm
    best: Candidate
    candidates: tuple[Candidate, ...]
    together: Candidate | None  # best undivided one
    tied: tuple[str, ...]
    considered: int
    runs: int


class Search:
    """`progress(done, total)` is called as simulations come in."""

    def __init__(
        self,
        question: Question,
        requests: Sequence[TraceRequest],
        *,
        num_requests: int = 4000,
        seed: int = 0,
        processes: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        if not requests:
            raise RequestError("the trace holds no request", param="trace")
        self.question = question
        self.requests, self.seed = requests, seed
        self.samples = [draw(requests, num_requests, seed + i) for i in range(DRAWS)]
        self.processes = max(1, processes if processes is not None else os.cpu_count() or 1)
        self.progress = progress
        self.runs = 0
        self._considered = 0

    def run(self, algorithm: Algorithm, rate: float | None = None) -> Placement:
        """`rate` is what `high`, `low` and `joint` replicate for; None: as many as the devices hold."""
        found = {"mortice": self._mortice, "high": self._high, "low": self._low, "joint": self._joint}[
            algorithm
        ](rate)
        found = sorted(found, key=lambda c: (-c.goodput, c.gpus, c.name))
        best = found[0]
        if best.goodput <= 0:
            raise RequestError(
                "slo: no placement meets it at any rate; the nearest is "
                f"{max(found, key=lambda c: c.expected).name}: loosen slo_ttft_ms or slo_tpot_ms",
                param="slo_ttft_ms",
            )
        return Placement(
            algorithm=algorithm,
            best=best,
            candidates=tuple(found),
            together=next((c for c in found if c.prefill is None), None),
            tied=tuple(
                c.name
                for c in found[1:]
                if c.high >= best.low and c.runs and c.goodput >= NEAR * best.goodput
            ),
            considered=self._considered,
            runs=self.runs,
        )

    # -- the four ways --------------------------------------------------------------------------------------------

    def _mortice(self, rate: float | None) -> list[Candidate]:
        question, gpus = self.question, self.question.gpus
        cut: list[Candidate] = []
        shapes = question.shapes(min(gpus, 4 * question.node))
        for prefill in shapes:
            for decode in shapes:
                best = self._best_counts(prefill, decode, gpus)
                if best is not None:
                    cut.append(best)
        whole = [self._expected(c) for c in undivided(question, gpus)]
        self._considered = len(cut) + len(whole)
        finalists = self._promising(cut) + self._promising(whole)
        return self._simulate(finalists)

    def _best_counts(self, prefill: Shape, decode: Shape, gpus: int) -> Candidate | None:
        """The division of all devices that carries the most by closed forms; what does not divide stays unused."""
        best: Candidate | None = None
        for p in range(1, gpus // prefill.gpus + 1):
            d = (gpus - p * prefill.gpus) // decode.gpus
            if d < 1:
                break
            found = self._expected(pair(self.question, prefill, decode, p, d))
            if best is None or found.expected > best.expected:
                best = found
        return best

    def _joint(self, rate: float | None) -> list[Candidate]:
        question = self.question
        shapes = question.shapes(min(question.gpus, 4 * question.node))
        pairs = [
            self._expected(pair(question, p, d, 1, 1))
            for p in shapes
            for d in shapes
            if p.gpus + d.gpus <= question.gpus
        ]
        self._considered = len(pairs)
        if not pairs:
            raise RequestError("gpus: a prefill and a decode instance do not fit together", param="gpus")
        found = self._simulate(self._promising(pairs, per_gpu=True))
        return sorted(found, key=lambda c: -c.per_gpu)[:1]

    def _low(self, rate: float | None) -> list[Candidate]:
        """Segments of a pair share a node: prefill and decode of one group of layers together take no more than a node."""
        question, node = self.question, min(self.question.node, self.question.gpus)
        pairs = []
        shapes = question.shapes(question.gpus)
        for across in range(1, max(1, question.gpus // node) + 1):
            for p in shapes:
                for d in shapes:
                    if p.pp % across or d.pp % across or (p.gpus + d.gpus) // across > node:
                        continue
                    if p.gpus + d.gpus <= question.gpus:
                        pairs.append(self._expected(pair(question, p, d, 1, 1, near=True)))
        pairs = list({c.name: c for c in pairs}.values())
        self._considered = len(pairs)
        if not pairs:
            raise RequestError("gpus: no pair of instances fits a node", param="gpus")
        found = self._simulate(self._promising(pairs, per_gpu=True))
        best = max(found, key=lambda c: c.per_gpu)
        assert best.prefill is not None
        count = self._copies(best.goodput, best.gpus, rate)
        return self._simulate([pair(question, best.prefill, best.decode, count, count, near=True)])

    def _high(self, rate: float | None) -> list[Candidate]:
        """Each phase by itself: prefill against TTFT with answers of one token, decode against TPOT with free prefill."""
        question = self.question
        shapes = question.shapes(min(question.gpus, 4 * question.node))
        alone: list[tuple[str, Shape, Deployment, Sample, SLO]] = []
        self._lengthen(max(self._expected(pair(question, s, s, 1, 1)).expected for s in shapes))
        first = self.samples[0]
        for shape in shapes:
            document = question.document(shape, shape, 1, 1, budget=8192)
            ones = msgspec.structs.replace(first, output_len=(1,) * len(first.output_len))
            only_ttft = msgspec.structs.replace(question.slo, tpot_ms=None)
            alone.append(("prefill", shape, document, ones, only_ttft))
            free = _with_free_prefill(document)
            alone.append(("decode", shape, free, first, msgspec.structs.replace(question.slo, ttft_ms=None)))
        self._considered = len(alone)
        rates: dict[str, dict[Shape, float]] = {"prefill": {}, "decode": {}}
        jobs = [(document, sample, slo, 0.0, 0.0) for _, _, document, sample, slo in alone]
        for index, found in self._each(jobs):
            phase, shape = alone[index][0], alone[index][1]
            rates[phase][shape] = found.rate
        good = [
            (p, d)
            for p, a in rates["prefill"].items()
            for d, b in rates["decode"].items()
            if a > 0 and b > 0 and p.gpus + d.gpus <= question.gpus
        ]
        if not good:
            return [self._expected(pair(question, shapes[0], shapes[0], 1, 1))]
        # Each phase's best by itself, unless the two do not fit together.
        best_p, best_d = min(
            good, key=lambda s: s[0].gpus / rates["prefill"][s[0]] + s[1].gpus / rates["decode"][s[1]]
        )
        g_p, g_d = rates["prefill"][best_p], rates["decode"][best_d]
        asked = rate or question.gpus / (best_p.gpus / g_p + best_d.gpus / g_d)
        n, m = math.ceil(asked / g_p - 1e-9), math.ceil(asked / g_d - 1e-9)
        while rate is None and n * best_p.gpus + m * best_d.gpus > question.gpus and n + m > 2:
            n, m = (n - 1, m) if m == 1 or (n > 1 and n * g_p > m * g_d) else (n, m - 1)
        return self._simulate([pair(question, best_p, best_d, n, m)])

    def _copies(self, goodput_: float, gpus: int, rate: float | None) -> int:
        if rate is not None and goodput_ > 0:
            return math.ceil(rate / goodput_ - 1e-9)
        return max(1, self.question.gpus // gpus)

    # -- closed forms and simulations -------------------------------------------------------------------------------

    def _expected(self, candidate: Candidate) -> Candidate:
        plan = plan_with_times(candidate.document)
        return msgspec.structs.replace(candidate, expected=carried(plan, self.samples[0]))

    def _promising(self, found: list[Candidate], *, per_gpu: bool = False) -> list[Candidate]:
        """The `KEEP` best by closed forms. A candidate that these underrate beyond that is never simulated."""
        ranked = sorted(
            found, key=lambda c: (-(c.expected / c.gpus if per_gpu else c.expected), c.gpus, c.name)
        )
        return ranked[:KEEP]

    def _lengthen(self, rate: float) -> None:
        """Draw more requests where those there are would be over before a queue can show: all answered within the TTFT when
        they come at once, they would have no largest rate."""
        slo, outputs = self.question.slo, self.samples[0].output_len
        answer_s = (slo.tpot_ms or 0.0) / 1e3 * sum(outputs) / len(outputs)
        lasts_s = max(LASTING * (slo.ttft_ms or 0.0) / 1e3, ANSWERS * answer_s)
        count = min(LONGEST, math.ceil(lasts_s * rate))
        if count > len(self.samples[0].gaps):
            self.samples = [draw(self.requests, count, self.seed + i) for i in range(DRAWS)]

    def _simulate(self, candidates: list[Candidate]) -> list[Candidate]:
        """Goodput on the first draw for all, on the others for those near the best."""
        self._lengthen(max((c.expected for c in candidates), default=0.0))
        found = dict(enumerate(candidates))
        rates: dict[int, list[float]] = {i: [] for i in found}
        slo = self.question.slo
        first = list({c.prefill is None: i for i, c in reversed(list(enumerate(candidates)))}.values())
        rest = [i for i in found if i not in first]
        floors: dict[
            bool, float
        ] = {}  # of cuts and of undivided ones: who is below after one run gets no second
        for batch in (first, rest):
            jobs = [
                (candidates[i].document, self.samples[0], slo, candidates[i].expected,
                 NEAR * floors.get(candidates[i].prefill is None, 0.0))
                for i in batch
            ]  # fmt: skip
            for index, got in self._each(jobs):
                rates[batch[index]].append(got.rate)
            for i in batch:
                kind = candidates[i].prefill is None
                floors[kind] = max(floors.get(kind, 0.0), rates[i][0])
        best = max(r[0] for r in rates.values())
        near = [i for i, r in rates.items() if r[0] >= NEAR * best and r[0] > 0]
        again = [(i, sample) for i in near for sample in self.samples[1:]]
        jobs = [(candidates[i].document, sample, slo, rates[i][0], 0.0) for i, sample in again]
        for index, got in self._each(jobs):
            rates[again[index][0]].append(got.rate)
        return [_settled(c, rates[i]) for i, c in enumerate(candidates)]

    def _each(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Goodput]]:
        """Results as they come, spread over the cores; on one core without another process."""
        total = len(jobs)
        if self.processes == 1 or total <= 1:
            for index, job in enumerate(jobs):
                yield index, self._count(_work(job), index + 1, total)
            return
        with ProcessPoolExecutor(min(self.processes, total)) as pool:
            futures: dict[Future[Goodput], int] = {pool.submit(_work, job): i for i, job in enumerate(jobs)}
            for done, future in enumerate(as_completed(futures), 1):
                yield futures[future], self._count(future.result(), done, total)

    def _count(self, found: Goodput, done: int, total: int) -> Goodput:
        self.runs += found.runs
        self.progress(done, total)
        return found


def _settled(candidate: Candidate, rates: list[float]) -> Candidate:
    """Mean over draws and Student's interval; one draw has none."""
    n = len(rates)
    mean = sum(rates) / n
    spread = math.sqrt(sum((r - mean) ** 2 for r in rates) / (n - 1) / n) if n > 1 else 0.0
    half = T95[n] * spread
    return msgspec.structs.replace(
        candidate, goodput=mean, low=max(0.0, mean - half), high=mean + half, runs=n
    )


def _work(job: Job) -> Goodput:
    document, sample, slo, expected, floor = job
    plan = plan_with_times(document)
    if floor > 0 and attainment_at(plan, sample, floor, slo).attainment < slo.target:
        return Goodput(0.0, floor, 1)
    start = expected or carried(plan, sample) or 1.0
    return goodput(plan, sample, slo, start=start)


@cache
def _fitted(hardware: str, shape: str, weights: str, kv: str, tp: int, pp: int) -> WorkerTimes:
    """Fits are dear and few: a search meets each layout many times."""
    document = Deployment(
        model=shape,
        cluster=ClusterSpec(
            hardware=hardware,
            weights=weights,
            kv=kv,
            prefill_tp=tp,
            prefill_pp=pp,
            decode_tp=tp,
            decode_pp=pp,
        ),
    )
    times = plan_of(document).setup.decode_times
    assert times is not None
    return times


def plan_with_times(document: Deployment) -> Plan:
    """`plan_of` with fits remembered."""
    c = document.cluster
    assert c is not None
    if c.hardware is None or c.prefill_times is not None:
        return plan_of(document)
    shape = c.shape or document.model
    filled = msgspec.structs.replace(
        c,
        prefill_times=_fitted(c.hardware, shape, c.weights, c.kv, c.prefill_tp, c.prefill_pp),
        decode_times=_fitted(c.hardware, shape, c.weights, c.kv, c.decode_tp, c.decode_pp),
    )
    return plan_of(msgspec.structs.replace(document, cluster=filled))


def _with_free_prefill(document: Deployment) -> Deployment:
    """The same with a prefill instance that takes no time and never fills: what is left is decode."""
    plan = plan_with_times(document)
    decode = plan.setup.decode_times
    c = document.cluster
    assert decode is not None
    assert c is not None
    free = msgspec.structs.replace(
        decode,
        prefill_base_s=1e-9,
        prefill_token_s=0.0,
        prefill_square_s=0.0,
        kv_tokens=1 << 40,
        source="free",
    )
    cluster = msgspec.structs.replace(c, prefill_times=free, decode_times=decode, port_bytes_per_s=0.0)
    limits = msgspec.structs.replace(document.limits, token_budget=1 << 40)
    return msgspec.structs.replace(document, cluster=cluster, limits=limits)
