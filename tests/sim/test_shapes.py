"""Results of the papers as shapes: ratios and orders that must hold on a simulator that is not theirs. Small samples: the
tolerances are wide."""

import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mortice.cost import Formats, Layout
from mortice.cost.worker_times import worker_times
from mortice.sched.capacity import Capacity
from mortice.sched.fleet import Fleet, Worker
from mortice.sched.prefix_fetch import PrefixFetch
from mortice.sched.router import Router
from mortice.sim.cluster import Cluster
from mortice.sim.evaluate import Sample, goodput
from mortice.sim.report import attainment
from mortice.sim.request import SimRequest
from mortice.sim.scenario import poisson, pools
from mortice.sim.traffic import prepared, requests_of
from mortice.specs.catalogue import load_hardware, load_model
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes
from mortice.specs.workload import read_trace

TRACES = Path(__file__).parents[3] / "shared" / "traces"

# OPT-13B on one A100-80G: DistServe's engine and vLLM's, as published (small batches)
THEIRS = WorkerTimes(
    prefill_base_s=0.018103, prefill_token_s=1.0191e-4, prefill_square_s=7.1223e-9, decode_base_s=0.019935,
    decode_sequence_s=3.8507e-5, decode_context_s=6.2694e-7, kv_tokens=66_144, kv_token_bytes=819_200,
)  # fmt: skip
VLLM = WorkerTimes(
    prefill_base_s=0.022052, prefill_token_s=1.4051e-4, prefill_square_s=8.0766e-9, decode_base_s=0.023475,
    decode_sequence_s=6.0727e-5, decode_context_s=5.9293e-7, kv_tokens=66_144, kv_token_bytes=819_200,
)  # fmt: skip


def sample(count: int, prompt: int, output: int, seed: int = 0) -> Sample:
    gaps = np.random.default_rng(seed).exponential(1.0, count)
    return Sample((prompt,) * count, (output,) * count, tuple(gaps.tolist()))


def both(prefill: int, decode: int, slo: SLO, draw: Sample, start: float) -> float:
    plan = pools(THEIRS, prefill, decode, slo=slo, prefill_budget=512, bytes_per_s=300e9, max_num_seqs=1024)
    return goodput(plan, draw, slo, start=start).rate


def alone(slo: SLO, draw: Sample) -> float:
    plan = pools(VLLM, 0, 0, 1, slo=slo, token_budget=8192)  # whole prompts first, as vLLM then did
    return goodput(plan, draw, slo, start=1.6).rate


def test_two_prefill_workers_and_one_decode_against_one_that_does_both() -> None:
    """C1 (DistServe, figure 1): 2.1 times a device; 1.5 to 3, as its figure comes from another engine (2.10 here). C3: the
    stricter target widens the gap (2.9)."""
    draw = sample(900, 512, 64)
    gain = []
    for target in (0.9, 0.99):
        slo = SLO(ttft_ms=400, tpot_ms=40, target=target)
        gain.append(both(2, 1, slo, draw, 9.0) / 3 / alone(slo, draw))
    assert 1.5 < gain[0] < 3
    assert gain[1] > gain[0]


def test_a_decode_worker_takes_about_what_two_prefill_workers_make() -> None:
    """C1: prefill alone 5.6, decode alone 10 requests a second, 1 : 1.8; here 1 : 1.6."""
    draw = sample(900, 512, 64)
    prefill = both(1, 6, SLO(ttft_ms=400), draw, 6.0)
    decode = both(8, 1, SLO(tpot_ms=40), draw, 12.0)
    assert 1.3 < decode / prefill < 2.5


def test_the_best_division_is_where_the_closed_form_has_it() -> None:
    """C11: of eight workers, simulated goodput peaks within one of the division that queueing theory names."""
    slo = SLO(ttft_ms=800, tpot_ms=40)
    draw = sample(1000, 512, 128)
    capacity = Capacity(prefill=THEIRS, decode=THEIRS, slo=slo)
    named, rate = capacity.best_division(8, draw.demand(1.0))
    found = {p: both(p, 8 - p, slo, draw, rate) for p in range(named - 2, named + 3)}
    assert abs(max(found, key=lambda p: found[p]) - named) <= 1, found


# -- C6: counts against the engine's own scheduler ---------------------------------------------------------------------

H100 = WorkerTimes(
    prefill_base_s=0.006, prefill_token_s=2e-5, prefill_square_s=2e-10, decode_base_s=0.0048,
    decode_sequence_s=2e-5, decode_context_s=2.5e-8, kv_tokens=800_000, kv_token_bytes=131_072,
)  # fmt: skip


def compare(prefill: int, decode: int, mixed: int, rate: float, count: int) -> tuple[float, float]:
    """Attainment in per cent by counts, and with BatchScheduler, BlockPool and LeaseTable token by token."""
    slo = SLO(ttft_ms=100, tpot_ms=9)
    found = []
    for fidelity in ("macro", "exact"):
        requests = poisson(count, rate, seed=9)
        plan = pools(H100, prefill, decode, mixed, slo=slo)
        Cluster(msgspec.structs.replace(plan, fidelity=fidelity), requests).run()
        found.append(100 * attainment(requests, slo))
    return found[0], found[1]


def check_points(shape: tuple[int, int, int], rates: Sequence[float], count: int) -> None:
    """C6 (DistServe, table 2: at most 1.8 points at 14 points): 2 points inside 5 to 95 %, else 1."""
    for rate in rates:
        counted, real = compare(*shape, rate, count)
        assert abs(counted - real) <= (2 if 5 < real < 95 else 1), (shape, rate, counted, real)


def test_attainment_by_counts_is_that_of_the_engines_scheduler() -> None:
    check_points((1, 2, 0), (28,), 250)
    check_points((0, 0, 3), (38,), 250)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_attainment_at_fourteen_points_is_that_of_the_engines_scheduler() -> None:
    check_points((1, 2, 0), (16, 20, 24, 26, 28, 30, 34), 1000)
    check_points((0, 0, 3), (15, 24, 30, 34, 38, 42, 46), 1000)


# -- Mooncake: 16 nodes of 8 A800, a 70B model -----------------------------------------------------------------------

PORT = 12.5e9  # bytes a second of each of a node's eight
BLOCK = 512  # tokens, as the traces count prefixes


def node() -> WorkerTimes:
    """One node by the cost model; memory of 5 million tokens, for its cache lies in host memory too."""
    times = worker_times(load_model("llama-3.1-70b"), load_hardware("a800"), Layout(tp=8), Formats())
    return msgspec.structs.replace(times, kv_tokens=5_000_000)


def mooncake(name: str, count: int, speed: float) -> list[SimRequest]:
    path = TRACES / f"mooncake_fast25_{name}.jsonl.gz"
    if not path.exists():
        pytest.skip("the shared traces do not lie beside this checkout")
    trace = prepared(read_trace(path), jitter_s=3.0 if name == "conversation" else 0.0)
    trace = msgspec.structs.replace(trace, requests=trace.requests[:count]).scaled(speed)
    return requests_of(trace, BLOCK, max_total=5_000_000)


def sixteen(prefill: int, requests: list[SimRequest], fetch: PrefixFetch | None = None) -> Cluster:
    slo = SLO(ttft_ms=10_000, tpot_ms=100)
    plan = pools(node(), prefill, 16 - prefill, slo=slo, block_size=BLOCK, bytes_per_s=PORT)
    setup = msgspec.structs.replace(plan.setup, fetch=fetch)
    return Cluster(msgspec.structs.replace(plan, setup=setup), requests)


Sweep = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def found() -> Sweep:
    """(TTFT, TPOT) of 5P11D to 11P5D on the synthetic trace at 2.7 requests a second; s."""
    found = []
    for prefill in range(5, 12):
        requests = mooncake("synthetic", 4000, 0.7)
        sixteen(prefill, requests).run()
        found.append((np.array([r.ttft_s for r in requests]), np.array([r.tpot_s or 0.0 for r in requests])))
    return found


@pytest.mark.slow
def test_more_prefill_nodes_answer_sooner_and_the_best_division_lies_between(found: Sweep) -> None:
    """C12: TTFT falls with every prefill node. Limits 10 s and 30 ms, not 100 ms: a decode step is 26 ms here, and theirs
    was as close to its limit. The best lies within two nodes of 8 to 8."""
    means = [first.mean() for first, _ in found]
    assert means == sorted(means, reverse=True)
    met = [((first <= 10) & (rest <= 0.03)).mean() for first, rest in found]
    assert 7 <= 5 + int(np.argmax(met)) <= 10, met


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True,
    reason="a decode step of the cost model (26 ms with these contexts) is a quarter of the 100 ms limit, so decode nodes "
    "are never what is short and the best division of 5:11 to 11:5 is the last; the published step times are not known",
)
def test_the_best_division_at_the_published_limits_lies_between(found: Sweep) -> None:
    """C12 to the letter: 10 s and 100 ms; TBT rises with prefill nodes."""
    means = [rest.mean() for _, rest in found]
    met = [((first <= 10) & (rest <= 0.1)).mean() for first, rest in found]
    assert 0 < int(np.argmax(met)) < len(met) - 1
    assert means == sorted(means)


class AtRandom(Router):
    def _best_prefill(
        self, prompt_len: int, names: Sequence[bytes], fleet: Fleet
    ) -> tuple[Worker | None, float, float]:
        return self.cost_at(LOT.choice(list(fleet.pools["prefill"].members.values())), prompt_len, names)

    def cost_at(
        self, worker: Worker, prompt_len: int, names: Sequence[bytes]
    ) -> tuple[Worker | None, float, float]:
        cached = self.prefixes.cached_tokens(worker.worker_id, names)
        work = self.work(prompt_len - cached, cached)
        return worker, work, worker.prefill_work + work


class Lightest(AtRandom):
    def _best_prefill(
        self, prompt_len: int, names: Sequence[bytes], fleet: Fleet
    ) -> tuple[Worker | None, float, float]:
        worker = fleet.pools["prefill"].lightest()
        assert worker is not None
        return self.cost_at(worker, prompt_len, names)


LOT = random.Random(0)


def test_routing_by_cache_beats_by_load_beats_random() -> None:
    """C13: mean TTFT of four ways to choose one of eight prefill nodes (Mooncake, section 5: 19.65, 5.27, 3.58, 3.07 s; here
    26, 4.0, 3.1, 2.6 on the first 3,000 conversations). `local` is the router as it is, `everywhere` may have a prefix sent
    from another prefill node over its ports."""
    sent = PrefixFetch(base_s=0.001, token_s=node().kv_token_bytes / (8 * PORT))
    mean = {}
    for name, kind, fetch in (
        ("random", AtRandom, None),
        ("load", Lightest, None),
        ("local", Router, None),
        ("everywhere", Router, sent),
    ):
        requests = mooncake("conversation", 3000, 0.6)
        LOT.seed(0)
        cluster = sixteen(8, requests, fetch)
        cluster.plane.router.__class__ = kind
        cluster.run()
        mean[name] = np.mean([r.ttft_s for r in requests])
    assert mean["random"] > 2 * mean["load"]
    assert mean["load"] > 1.1 * mean["local"]
    assert mean["local"] > 1.1 * mean["everywhere"]
