"""What brings the simulator nearer to a live cluster: KV that is read where it lies, and steps that vary."""

import random

import msgspec
import numpy as np
import pytest

from mortice.cluster.live import LiveCluster
from mortice.cost.spread_fit import measured_spread
from mortice.cost.step_fit import fit_steps
from mortice.sim.cluster import Cluster, Physics
from mortice.sim.deployed import plan_of
from mortice.sim.request import SimRequest
from mortice.sim.scenario import arrivals, poisson, pools
from mortice.sim.spread import StepDraws
from mortice.specs.cluster import ClusterSpec
from mortice.specs.deployment import Deployment, Transfer
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.step_spread import StepSpread
from mortice.specs.worker_times import WorkerTimes

TIMES = WorkerTimes(
    prefill_base_s=0.006, prefill_token_s=2e-5, prefill_square_s=2e-10, decode_base_s=0.0048,
    decode_sequence_s=2e-5, decode_context_s=2.5e-8, kv_tokens=800_000, kv_token_bytes=131_072,
)  # fmt: skip
SLOS = SLO(ttft_ms=500, tpot_ms=25)


def run(
    requests: list[SimRequest], counts: tuple[int, int], kv: int, physics: Physics, fidelity: str
) -> Cluster:
    """Decode workers hold `kv` tokens."""
    small = msgspec.structs.replace(TIMES, kv_tokens=kv)
    plan = pools(TIMES, *counts, slo=SLOS, decode_times=small, physics=physics)
    cluster = Cluster(msgspec.structs.replace(plan, fidelity=fidelity), requests)
    cluster.run()
    cluster.check()
    assert all(r.stage == "finished" and r.given == r.output_len for r in requests)
    return cluster


def percentiles(requests: list[SimRequest]) -> list[float]:
    """P50 and P90 of TTFT, then of TPOT."""
    ttft, tpot = [r.ttft_s for r in requests], [r.tpot_s for r in requests if r.tpot_s is not None]
    return [*np.percentile(ttft, (50, 90)), *np.percentile(tpot, (50, 90))]


# -- KV that is read in place ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "rate", "kv"), [((2, 2), 30, 800_000), ((2, 1), 40, 20_000), ((1, 1), 20, 8000)]
)
def test_lent_kv_by_counts_is_that_of_the_scheduler_itself(
    counts: tuple[int, int], rate: int, kv: int
) -> None:
    """All within 1 %. With 8,000 tokens memory runs out: there P90 of TPOT is that of the few that are preempted, of whom
    there must be as many within a fifth."""
    found, preempted = [], []
    for fidelity in ("macro", "exact"):
        requests = poisson(200, rate, seed=9, longest=3000)
        cluster = run(requests, counts, kv, Physics(lends=True), fidelity)
        found.append(percentiles(requests))
        preempted.append(sum(w.num_preemptions for w in cluster.workers.values()))
    assert preempted[0] == pytest.approx(preempted[1], rel=0.2)
    last = 3 if kv == 8000 else 4
    assert found[0][:last] == pytest.approx(found[1][:last], rel=0.01)
    assert (preempted[0] > 0) == (kv == 8000)


def test_a_decode_workers_memory_includes_what_it_borrows() -> None:
    """20,000 tokens are too few for what comes; half of what two prefill workers have is lent beside them."""
    preempted = []
    for lends in (False, True):
        requests = poisson(250, 40, seed=9)
        cluster = run(requests, (2, 1), 20_000, Physics(lends=lends), "macro")
        preempted.append(sum(w.num_preemptions for w in cluster.workers.values()))
    assert preempted[0] > 0
    assert preempted[1] == 0


@pytest.mark.parametrize("fidelity", ["macro", "exact"])
def test_half_of_a_pool_is_lent_and_the_rest_fetched(fidelity: str) -> None:
    """Ten prompts of a tenth of the prefill worker's memory: five stay there until their answers end."""
    source = msgspec.structs.replace(TIMES, kv_tokens=10_080)
    requests = arrivals([0.0] * 10, [1000] * 10, [2000] * 10)
    plan = pools(source, 1, 1, slo=SLOS, decode_times=TIMES, physics=Physics(lends=True))
    cluster = Cluster(msgspec.structs.replace(plan, fidelity=fidelity), requests)
    cluster.run(until_s=2.0)
    owner, reader = cluster.workers["w1"], cluster.workers["w2"]
    assert len(owner.leased) == 5
    assert sum(r.is_lent for r in requests) == 5
    assert all(r.stage == "decode" for r in requests)
    assert reader.capacity - reader.free_tokens < 10 * 500 + 5 * 1100
    cluster.run()
    assert not owner.leased
    assert owner.free_tokens == owner.capacity


def test_lent_kv_outlives_its_owner() -> None:
    requests = arrivals([0.0] * 5, [1000] * 5, [500] * 5)
    cluster = Cluster(pools(TIMES, 1, 1, slo=SLOS, physics=Physics(lends=True, start_s=1.0)), requests)
    cluster.run(until_s=1.0)
    assert all(r.stage == "decode" and r.is_lent for r in requests)
    cluster.kill(cluster.workers["w1"])
    cluster.run()
    assert cluster.num_recomputed == 0
    assert all(r.attempts == 0 and r.given == 500 for r in requests)


# -- steps that vary ---------------------------------------------------------------------------------------------------

WIDE = tuple(np.random.default_rng(0).gamma(2.0, 0.5, 64).tolist())


def varied(spread: StepSpread | None, seed: int = 0) -> list[SimRequest]:
    requests = poisson(400, 20, seed=3, output=40, spread=0.3)
    run(requests, (1, 2), 800_000, Physics(spread=spread, prompt_spread=spread, seed=seed), "macro")
    return requests


def test_a_seed_draws_the_same_steps_and_another_others() -> None:
    spread = StepSpread(factors=WIDE, run_s=0.03)
    ends = [[r.end_s for r in varied(spread, seed)] for seed in (1, 1, 2)]
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def test_steps_that_vary_widen_the_tail_the_more_the_longer_one_lasts() -> None:
    """A factor of 1 changes nothing. Slow stretches last longer, so more arrivals fall into them: the mean TPOT
    lies between that of a step and 1 + the variance times it; P90 grows with the run."""
    still = varied(None)
    even = varied(StepSpread(factors=(1.0,), run_s=0.02))
    assert percentiles(even) == pytest.approx(percentiles(still), rel=1e-3)
    mean = sum(WIDE) / len(WIDE)
    factors = tuple(f / mean for f in WIDE)
    tails = [percentiles(still)[3]]
    for run_s in (0.0, 0.05, 0.4):
        requests = varied(StepSpread(factors=factors, run_s=run_s))
        longer = np.mean([r.tpot_s for r in requests]) / np.mean([r.tpot_s for r in still])
        assert 0.95 < longer < 1 + np.var(factors)
        tails.append(percentiles(requests)[3])
    assert tails[0] < tails[1] < tails[2] < tails[3]
    assert tails[3] > 1.3 * tails[0]


def test_prompts_and_decoding_vary_each_by_its_own() -> None:
    slow = StepSpread(factors=(2.0,))
    plain, decode, prompt = (poisson(100, 2, seed=3, output=40, spread=0.3) for _ in range(3))
    for requests, physics in (
        (plain, Physics()), (decode, Physics(spread=slow)), (prompt, Physics(prompt_spread=slow)),
    ):  # fmt: skip
        for fidelity in ("macro", "exact"):
            run(
                requests if fidelity == "macro" else list(map(again, requests)),
                (1, 1),
                800_000,
                physics,
                fidelity,
            )
    assert percentiles(decode)[:2] == pytest.approx(percentiles(plain)[:2])
    assert percentiles(decode)[2] == pytest.approx(2 * percentiles(plain)[2], rel=0.1)
    assert percentiles(prompt)[0] == pytest.approx(2 * percentiles(plain)[0], rel=0.1)
    assert percentiles(prompt)[2] == pytest.approx(percentiles(plain)[2], rel=0.02)


def again(request: SimRequest) -> SimRequest:
    return SimRequest(request.index, request.arrival_s, request.prompt_len, request.output_len, [])


@pytest.mark.parametrize("run_s", [0.02, 0.1])
def test_a_spread_is_found_again_in_the_steps_that_it_made(run_s: float) -> None:
    """What the fit misses of the shortest steps, a third, is not taken for spread."""
    made = StepSpread(factors=tuple(f * 1.7 for f in WIDE), run_s=run_s)
    draws = StepDraws(made, 7, "w1")
    rng = random.Random(7)
    expected = [rng.uniform(0.01, 0.02) for _ in range(20_000)]
    measured, now_s = [], 0.0
    for each in expected:
        longer = draws.pace(now_s, each)
        now_s += longer * each
        measured.append(longer * each * (1.33 if each < 0.0125 else 1.0))
    found = measured_spread(measured, expected)
    assert run_s / 2 < found.run_s < 2 * run_s
    assert sum(found.factors) / len(found.factors) == pytest.approx(1.0)
    shape = np.array(made.factors) / np.mean(made.factors)
    assert np.quantile(found.factors, (0.1, 0.5, 0.9)) == pytest.approx(
        np.quantile(shape, (0.1, 0.5, 0.9)), rel=0.1
    )


def test_steps_that_vary_threefold_are_fitted_without_bias() -> None:
    """Short and long ones alike: what other work spared must not count for more than what it delayed."""
    rng = np.random.default_rng(4)
    tokens = rng.integers(20, 500, 4000)
    prompts = [((0.05 + 0.001 * n) * rng.choice(WIDE), n, n * n, 0, 0) for n in tokens.tolist()]
    decodes = [
        ((0.02 + 0.004 * n) * rng.choice(WIDE), 0, 0, n, 100 * n) for n in rng.integers(1, 8, 4000).tolist()
    ]
    times = fit_steps(prompts + decodes, kv_tokens=1000, kv_token_bytes=1.0, source="made")
    mean = np.mean(WIDE)
    for n in (20, 100, 500):
        assert times.prefill_s(n) == pytest.approx(mean * (0.05 + 0.001 * n), rel=0.06)
    for n in (1, 7):
        assert times.decode_s(n, 100 * n) == pytest.approx(mean * (0.02 + 0.004 * n), rel=0.06)


def test_what_is_no_spread_is_refused() -> None:
    for factors, run_s, field in (((), 1, "factors"), ((1.0, -1.0), 1, "factors"), ((1.0, float("nan")), 1, "factors"),
                                  ((1.0,), -1, "run_s"), ((1.0,), float("nan"), "run_s")):  # fmt: skip
        with pytest.raises(RequestError) as caught:
            StepSpread(factors=factors, run_s=run_s).check("cluster.step_spread")
        assert caught.value.param == f"cluster.step_spread.{field}"
    with pytest.raises(RequestError, match="3 measured steps are too few"):
        measured_spread([1.0] * 3, [1.0] * 3)


# -- how a document says so ----------------------------------------------------------------------------------------------


def test_workers_of_one_host_lend_and_others_do_not() -> None:
    local = ClusterSpec(
        prefill_times=TIMES, decode_times=TIMES, step_spread=StepSpread(factors=(0.5, 1.5), run_s=0.2)
    )
    document = Deployment(model="fake", prefill=1, decode=1, cluster=local)
    physics = plan_of(document).physics
    assert physics.lends
    assert physics.spread == StepSpread(factors=(0.5, 1.5), run_s=0.2)
    apart = msgspec.structs.replace(local, port_bytes_per_s=1e9)
    for other in (
        msgspec.structs.replace(document, transfer=Transfer(mode="pull")),
        msgspec.structs.replace(document, transfer=Transfer(transport="tcp")),
        msgspec.structs.replace(document, cluster=apart),
    ):
        assert not plan_of(other).physics.lends
    with pytest.raises(RequestError, match="run_s must be finite and not negative"):
        msgspec.structs.replace(local, step_spread=StepSpread(factors=(1.0,), run_s=-1)).check()


def test_a_document_lets_prefixes_be_sent_in_simulation_only() -> None:
    """The cost of a token is its bytes over the port; live workers and the scheduler itself refuse what they do not do."""
    spec = ClusterSpec(prefill_times=TIMES, decode_times=TIMES, port_bytes_per_s=1e9, fetch_prefixes=True)
    document = Deployment(model="fake", prefill=2, decode=1, cluster=spec)
    plan = plan_of(document)
    assert plan.setup.fetch is not None
    assert plan.setup.fetch.lasts_s(1000) == pytest.approx(0.001 + 0.131072)
    assert (
        plan_of(
            msgspec.structs.replace(document, cluster=ClusterSpec(prefill_times=TIMES, decode_times=TIMES))
        ).setup.fetch
        is None
    )
    with pytest.raises(RequestError, match="fetch_prefixes is simulated only"):
        LiveCluster(document, model_path="fake:", draft_model_path=None, threads=1)
    with pytest.raises(RequestError, match="by counts only"):
        Cluster(msgspec.structs.replace(plan, fidelity="exact"), [])
