"""Cases that break such systems, one after the other: clients that hang up, herds, hot prefixes, silence, slow starts.

What is here is what no other test of sim, sched, engine or cluster shows already.
"""

import itertools
import json
import math
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mortice.sched.actions import Bounds, Start
from mortice.sched.controller import Pace
from mortice.sched.events import Joined
from mortice.sched.plane import ControlPlane
from mortice.sched.prefix_fetch import PrefixFetch
from mortice.sched.setup import Setup
from mortice.sim import evaluate
from mortice.sim.cluster import Cluster, Physics
from mortice.sim.deployed import longest, plan_of
from mortice.sim.evaluate import Sample, Score, attainment_at, goodput
from mortice.sim.faults import Fault
from mortice.sim.plan import Plan
from mortice.sim.report import attainment, report
from mortice.sim.request import SimRequest
from mortice.sim.scenario import arrivals, poisson, pools
from mortice.sim.traffic import prepared, requests_of
from mortice.sim.worker import SimWorker
from mortice.specs.cluster import ClusterSpec
from mortice.specs.deployment import Deployment
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes
from mortice.specs.workload import Trace, TraceRequest, read_trace

TIMES = WorkerTimes(
    prefill_base_s=0.006, prefill_token_s=2e-5, prefill_square_s=2e-10, decode_base_s=0.0048,
    decode_sequence_s=2e-5, decode_context_s=2.5e-8, kv_tokens=800_000, kv_token_bytes=131_072,
)  # fmt: skip
SLOS = SLO(ttft_ms=500, tpot_ms=25)
TRACES = Path(__file__).parents[3] / "shared" / "traces"
HEAD = Path(__file__).parents[1] / "data" / "mooncake_conversation_head.jsonl"


def end(cluster: Cluster) -> None:
    """To the end: everything is finished or was given up, and no worker keeps memory."""
    cluster.run()
    cluster.check()
    for request in cluster.requests:
        assert request.stage in ("finished", "cancelled", "rejected"), request.id
        assert request.stage != "finished" or request.given == request.output_len
    for worker in cluster.workers.values():
        assert worker.free_tokens == worker.capacity, f"{worker.id} keeps memory"
        assert worker.is_empty


# -- clients that hang up ----------------------------------------------------------------------------------------------

PHASES = ("held", "prefill queue", "prefill", "bridge", "moving", "decode queue", "decode")


def crowded(fidelity: str, *, lends: bool = False) -> tuple[Plan, list[SimRequest], list[Fault]]:
    """A cluster in which requests wait everywhere: slow links, little memory, the only decode worker dies twice."""
    requests = poisson(50, 30, seed=5, prompt=900, output=120, spread=0.5, longest=2500)
    small = msgspec.structs.replace(TIMES, kv_tokens=6000)
    plan = pools(
        msgspec.structs.replace(TIMES, kv_tokens=12_000), 1, 1, slo=SLOS, decode_times=small, bytes_per_s=2e9,
        physics=Physics(start_s=0.4, lends=lends),
    )  # fmt: skip
    plan = msgspec.structs.replace(plan, fidelity=fidelity)
    return plan, requests, [Fault(at_s=0.9, kind="kill", worker=1), Fault(at_s=1.1, kind="kill", worker=0)]


def phase(cluster: Cluster, request: SimRequest) -> str:
    if request.stage != "prefill":
        return request.stage
    worker = request.at
    if isinstance(worker, SimWorker):
        waits = request in worker.prompts.waiting
    else:
        waits = any(s.request.id == request.id for s in worker.scheduler.waiting)
    if cluster.roles[worker.id] == "decode" and request.given:
        return "decode queue" if waits else "decode"
    return "prefill queue" if waits else "prefill"


@pytest.mark.parametrize("fidelity", ["macro", "exact"])
def test_a_client_hangs_up_in_every_phase(fidelity: str) -> None:
    """Case 15: what nobody wants any more is gone at that instant, on every worker, and nothing else is."""
    plan, requests, faults = crowded(fidelity)
    cluster = Cluster(plan, requests, faults=faults)
    moments: dict[str, list[tuple[int, float]]] = {name: [] for name in PHASES}
    for turn in range(1, 3000):
        cluster.run(until_s=turn * 0.002)
        for request in cluster.requests[: cluster.num_arrived]:
            name = phase(cluster, request)
            if name in moments:
                moments[name].append((request.index, turn * 0.002))
    for name, found in moments.items():
        assert found, f"no request was ever in phase {name!r}"
        for index, at_s in found[:: max(1, len(found) // 2)]:
            plan, requests, faults = crowded(fidelity)
            requests[index].leaves_s = at_s
            cluster = Cluster(plan, requests, faults=faults)
            cluster.run(until_s=at_s)
            assert phase(cluster, requests[index]) == name
            cluster.run(until_s=at_s + 1e-6)
            assert requests[index].stage == "cancelled", name
            assert all(requests[index] not in w.requests() for w in cluster.workers.values()), name
            cluster.check()
            end(cluster)
            assert sum(r.stage == "cancelled" for r in requests) == 1


def test_a_client_hangs_up_while_its_kv_is_read_in_place() -> None:
    """Case 15 where KV is lent: the owner's blocks are free with the reader's."""
    plan, requests, _ = crowded("macro", lends=True)
    cluster = Cluster(plan, requests)
    cluster.run(until_s=0.6)
    reading = [r for r in requests if r.stage == "decode" and r.is_lent]
    assert reading
    for request in reading:
        request.leaves_s = 0.61
    again = Cluster(plan, requests := _fresh(requests))
    again.run(until_s=0.61 + 1e-6)
    gone = [r for r in requests if r.stage == "cancelled"]
    assert len(gone) == len(reading)
    owner = again.workers["w1"]
    assert not any(r in owner.leased for r in gone)
    end(again)


def _fresh(requests: list[SimRequest]) -> list[SimRequest]:
    return [
        SimRequest(r.index, r.arrival_s, r.prompt_len, r.output_len, r.names, r.leaves_s) for r in requests
    ]


def test_a_trace_says_when_its_clients_hang_up(tmp_path: Path) -> None:
    """Cases 2 and 15: who left after the first token counts as missed and frees both sides."""
    rows = [
        {
            "timestamp": 100 * i,
            "input_length": 2000,
            "output_length": 400,
            "leaves_after": 300 if i % 2 else None,
        }
        for i in range(20)
    ]
    trace = tmp_path / "T.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    requests = requests_of(read_trace(trace), 16, max_total=10_000)
    cluster = Cluster(pools(TIMES, 1, 1, slo=SLO(ttft_ms=5000, tpot_ms=500)), requests)
    end(cluster)
    left = [r for r in requests if r.stage == "cancelled"]
    assert [r.index for r in left] == list(range(1, 20, 2))
    assert all(0 < r.given < r.output_len for r in left)
    assert all(r.end_s == pytest.approx(r.arrival_s + 0.3) for r in left)
    assert attainment(requests, SLO(ttft_ms=5000, tpot_ms=500)) == 0.5
    assert report(cluster, SLOS)["cancelled"] == 10
    trace.write_text('{"timestamp": 0, "input_length": 5, "output_length": 2, "leaves_after": -1}\n')
    with pytest.raises(RequestError, match="line 1: leaves_after is before it arrives"):
        read_trace(trace)


def test_a_client_hangs_up_between_two_pipeline_stages() -> None:
    piped = msgspec.structs.replace(TIMES, pp=2)
    requests = arrivals([0.0, 0.0], [6000, 3000], [5, 5])
    requests[0].leaves_s = 0.1  # of its prompt's 0.133 s; the next prompt started half way
    cluster = Cluster(pools(piped, 1, 1, slo=SLOS, decode_times=TIMES, prefill_budget=6000), requests)
    cluster.run(until_s=0.09)
    assert len(cluster.workers["w1"].prompts.piped) == 2  # type: ignore[union-attr]
    end(cluster)
    assert [r.stage for r in requests] == ["cancelled", "finished"]


def test_a_prefill_worker_dies_with_prompts_between_two_stages() -> None:
    piped = msgspec.structs.replace(TIMES, pp=2)
    requests = arrivals([0.0, 0.0], [6000, 3000], [5, 5])
    plan = pools(piped, 1, 1, slo=SLOS, decode_times=TIMES, prefill_budget=6000, physics=Physics(start_s=1.0))
    cluster = Cluster(plan, requests, faults=[Fault(at_s=0.1, kind="kill", worker=0)])
    end(cluster)
    assert all(r.stage == "finished" for r in requests)


# -- metrics ---------------------------------------------------------------------------------------------------------


def test_all_rejected_is_an_attainment_of_nothing() -> None:
    """Case 3."""
    requests = poisson(50, 10, seed=1)
    plan = pools(TIMES, 1, 1, slo=SLOS)
    admit = msgspec.structs.replace(plan.setup.admit, max_in_flight=0)
    plan = msgspec.structs.replace(plan, setup=msgspec.structs.replace(plan.setup, admit=admit))
    cluster = Cluster(plan, requests)
    end(cluster)
    found = report(cluster, SLOS)
    assert (found["rejected"], found["attainment"], found["ttft_ms"]["p50"]) == (50, 0.0, None)


def test_attainment_exactly_at_the_target_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 4: and where the response is not monotone the answer is a rate that was met itself."""
    gaps = tuple(np.random.default_rng(0).exponential(1.0, 400).tolist())
    draw = Sample((800,) * 400, (100,) * 400, gaps)
    plan = pools(TIMES, 1, 1, slo=SLOS)
    tight = SLO(ttft_ms=45, tpot_ms=25)
    reached = attainment_at(plan, draw, 30.0, tight, give_up=False).attainment
    assert 0.3 < reached < 1
    exact = msgspec.structs.replace(tight, target=reached)
    assert goodput(plan, draw, exact, start=30.0).rate >= 30.0

    met: list[float] = []

    def jagged(_: Plan, __: Sample, rate: float, slo: SLO) -> Score:
        good = rate < 8 or 9 < rate < 11 or 11.5 < rate < 12
        if good:
            met.append(rate)
        return Score(1.0 if good else 0.0, 0.0, 1.0)

    monkeypatch.setattr(evaluate, "attainment_at", jagged)
    for start in (2.0, 7.9, 10.0, 11.7, 30.0):
        assert goodput(plan, draw, SLOS, start=start).rate in met


# -- herds and bursts ------------------------------------------------------------------------------------------------


def test_a_burst_after_silence_loses_nothing_and_passes() -> None:
    """Case 8: as Azure's code traffic, 632 arrivals in a minute after two minutes of nothing, twice."""
    rng = np.random.default_rng(3)
    at = np.sort(np.concatenate([120 + 60 * rng.random(632), 300 + 60 * rng.random(632)])).tolist()
    prompts = np.clip(rng.lognormal(7.2, 0.9, len(at)), 50, 7400).astype(int).tolist()
    plan = pools(TIMES, 1, 3, slo=SLOS, policy="mortice", convertible=True)
    cluster = Cluster(plan, arrivals(at, prompts, [28] * len(at)))
    end(cluster)
    assert attainment(cluster.requests, SLOS) > 0.9


@pytest.mark.parametrize("jitter_s", [0.0, 3.0])
def test_a_herd_every_three_seconds(jitter_s: float) -> None:
    """Case 9: Mooncake's clock ticks every 3 s. Raw, the last of a herd wait for all before them; jittered they do not."""
    trace = prepared(read_trace(HEAD), jitter_s=jitter_s)
    requests = requests_of(trace, 16, max_total=800_000)
    cluster = Cluster(pools(TIMES, 2, 2, slo=SLOS), requests)
    end(cluster)
    raw = prepared(read_trace(HEAD)).requests
    together = max(len(list(group)) for _, group in itertools.groupby(raw, key=lambda r: r.at_s))
    assert together >= 3
    mean = np.mean([r.ttft_s for r in requests])
    herd = requests_of(prepared(read_trace(HEAD)), 16, max_total=800_000)
    other = Cluster(pools(TIMES, 2, 2, slo=SLOS), herd)
    end(other)
    assert mean <= np.mean([r.ttft_s for r in herd])


def named(at_s: list[float], groups: list[int], prompt_len: int, output_len: int) -> list[SimRequest]:
    """Requests whose prompts begin alike within a group, but for the last block of 16 tokens."""
    made = []
    for i, (at, group) in enumerate(zip(at_s, groups, strict=True)):
        names = [(group * 10_000 + b).to_bytes(8, "big") for b in range(prompt_len // 16 - 1)]
        made.append(SimRequest(i, at, prompt_len, output_len, [*names, (1 << 40 | i).to_bytes(8, "big")]))
    return made


@pytest.mark.parametrize("fidelity", ["macro", "exact"])
def test_identical_prompts_that_arrive_together(fidelity: str) -> None:
    """Case 10: computed once or twice a worker, found by all that come later, and the books are right."""
    requests = named([0.0] * 8 + [1.0] * 8, [1] * 16, 3200, 20)
    plan = msgspec.structs.replace(pools(TIMES, 1, 1, slo=SLOS, prefill_budget=3200), fidelity=fidelity)
    cluster = Cluster(plan, requests)
    cluster.run(until_s=0.9)
    first = sum(w.num_prefill_tokens for w in cluster.workers.values())
    end(cluster)
    then = sum(w.num_prefill_tokens for w in cluster.workers.values()) - first
    assert 3200 <= first <= 2 * 3200 + 7 * 32
    assert then <= 8 * 32
    assert all(r.ttft_s < 0.02 for r in requests[8:])


def test_prompts_that_are_too_long_for_a_step_for_prefill_and_for_decode() -> None:
    """Case 7: what exceeds a step is computed in chunks; what a prefill worker, or a decode worker, can never hold is
    refused before the run, with its row."""
    requests = arrivals([0.0], [5000], [3])
    cluster = Cluster(pools(TIMES, 1, 1, slo=SLOS, prefill_budget=512), requests)
    end(cluster)
    assert cluster.workers["w1"].num_prefill_tokens == 5000
    for prefill, decode, most in ((4000, 9000, 4000), (9000, 3200, 3200)):
        spec = ClusterSpec(
            prefill_times=msgspec.structs.replace(TIMES, kv_tokens=prefill),
            decode_times=msgspec.structs.replace(TIMES, kv_tokens=decode),
        )
        document = Deployment(model="fake", prefill=1, decode=1, cluster=spec)
        rows = (TraceRequest(0.0, 100, 5), TraceRequest(1.0, 5000, 3))
        trace = Trace(name="T", format="azure", requests=rows)
        with pytest.raises(RequestError, match=f"T, request 2: 5000 .* exceed the {most}"):
            requests_of(trace, 16, max_total=longest(plan_of(document), document))


# -- links --------------------------------------------------------------------------------------------------------------


def test_a_link_that_stalls_is_waited_for_and_one_that_fails_is_done_without() -> None:
    """Case 13: a cut shorter than the lease goes on where it stopped; a longer one ends with the prompt computed where it
    decodes."""
    for lasts_s, recomputed in ((2.0, 0), (60.0, 1)):
        requests = arrivals([0.0], [4000], [10])
        plan = pools(TIMES, 1, 1, slo=SLOS, bytes_per_s=1e9, physics=Physics(lease_s=5.0))
        cut = Fault(at_s=0.3, kind="cut", worker=0, lasts_s=lasts_s)  # the fetch takes from 0.1 to 0.6 s
        cluster = Cluster(plan, requests, faults=[cut])
        cluster.run(until_s=0.3)
        assert requests[0].stage == "moving"
        end(cluster)
        assert cluster.num_recomputed == recomputed
        moved_s = requests[0].moved_s if not recomputed else requests[0].end_s
        assert (2.5 if not recomputed else 5.2) < moved_s < (2.8 if not recomputed else 5.8)


# -- load that changes -----------------------------------------------------------------------------------------------


def flow(rate: Callable[[float], float], until_s: float, seed: int = 0) -> list[float]:
    """Arrivals of a Poisson process with a rate that changes (thinning)."""
    rng = np.random.default_rng(seed)
    most = max(rate(t) for t in np.linspace(0, until_s, 1000))
    at, kept = 0.0, []
    while (at := at + rng.exponential(1 / most)) < until_s:
        if rng.random() < rate(at) / most:
            kept.append(at)
    return kept


SCALING = {
    "bounds": Bounds(max_gpus=12), "pace": Pace(period_s=5, start_s=10, patience=3, dwell_s=10),
    "physics": Physics(start_s=10.0), "policy": "mortice",
}  # fmt: skip


@pytest.mark.parametrize(
    "rate",
    [lambda t: 15 if t < 100 else 60, lambda t: 5 + 55 * t / 300, lambda t: 60 * math.exp(-t / 60)],
    ids=["step x4", "ramp", "decay to nothing"],
)
def test_load_that_steps_climbs_or_dies_away(rate: Callable[[float], float]) -> None:
    """Case 21: what there is follows the load, within the budget, and most are in time but for a start-up's worth."""
    at = flow(rate, 300)
    requests = arrivals(at, [1500] * len(at), [150] * len(at))
    start = (1, 2) if rate(299) > rate(0) else (3, 4)
    cluster = Cluster(pools(TIMES, *start, slo=SLOS, **SCALING), requests)  # type: ignore[arg-type]
    sizes = []
    for turn in range(1, 31):
        cluster.run(until_s=10.0 * turn)
        sizes.append(len(cluster.workers))
    end(cluster)
    assert cluster.max_gpus <= 12
    assert attainment(requests, SLOS) > 0.85
    if rate(299) > rate(0):
        assert max(sizes[20:]) > min(sizes[:10])
    else:
        assert sizes[-1] < max(sizes[:10])


def test_the_first_request_after_an_hour_of_silence() -> None:
    """Case 24: the fleet shrank to its minimum and not below, and the request is answered as any other."""
    at = [*flow(lambda _: 40, 60), 3660.0]
    requests = arrivals(at, [1000] * len(at), [50] * len(at))
    cluster = Cluster(pools(TIMES, 2, 2, slo=SLOS, **SCALING), requests)  # type: ignore[arg-type]
    cluster.run(until_s=3600.0)
    assert 1 <= len(cluster.workers) <= 2
    end(cluster)
    assert requests[-1].ttft_s < 0.5


@pytest.mark.parametrize("start_s", [60.0, 1e9])
def test_starts_slower_than_the_period_are_not_ordered_again_and_again(start_s: float) -> None:
    """Case 26: what was ordered counts as coming, a start that never becomes ready too."""
    at = flow(lambda _: 80, 120)
    requests = arrivals(at, [1500] * len(at), [150] * len(at))
    options = {**SCALING, "physics": Physics(start_s=start_s), "pace": Pace(period_s=5, start_s=60)}
    cluster = Cluster(pools(TIMES, 1, 1, slo=SLOS, **options), requests)  # type: ignore[arg-type]
    cluster.run(until_s=120.0)
    starts = sum(isinstance(a, Start) for d in cluster.decisions for a in d.actions)
    assert 1 <= starts <= 10
    assert cluster.max_gpus <= 12


def test_a_worker_that_dies_as_soon_as_it_is_there() -> None:
    """Case 26: replacements come with growing delays, the others serve."""
    requests = poisson(400, 10, seed=2)
    faults = [Fault(at_s=1.0 + 0.5 * i, kind="kill", worker=3) for i in range(40)]
    plan = pools(TIMES, 1, 3, slo=SLOS, physics=Physics(start_s=0.1))
    cluster = Cluster(plan, requests, faults=faults)
    end(cluster)
    assert attainment(requests, SLOS) > 0.9


def test_workers_that_drain_lose_nothing() -> None:
    """Case 28: KV that nobody fetched yet keeps a prefill worker until it is fetched, long answers a decode worker."""
    at = flow(lambda t: 60 if t < 30 else 2, 120)
    requests = arrivals(at, [1500] * len(at), [900] * len(at))
    cluster = Cluster(pools(TIMES, 3, 3, slo=SLOS, **SCALING), requests)  # type: ignore[arg-type]
    end(cluster)
    assert any("stopped" in what for _, what in cluster.events)
    assert all(r.stage == "finished" for r in requests)


def test_prefill_demand_falls_when_prefixes_are_found() -> None:
    """Case 31: the hit rate jumps from 0 to 0.6 and the division follows: fewer workers prefill."""

    def wanted(hit: float) -> float:
        plane = ControlPlane(_setup())
        for i in range(8):
            plane.hear(_joined(i))
        for _ in range(1000):
            plane.tally.arrived(6000, round(6000 * (1 - hit)))
            plane.tally.ended(150, 0.1, 0.01)
        plane.tick(10.0)
        for _ in range(1000):
            plane.tally.arrived(6000, round(6000 * (1 - hit)))
            plane.tally.ended(150, 0.1, 0.01)
        return plane.tick(20.0).target.prefill

    assert wanted(0.6) < wanted(0.0)


def _setup() -> Setup:
    return pools(TIMES, 4, 4, slo=SLOS, policy="mortice").setup


def _joined(i: int) -> Joined:
    return Joined(0.0, f"w{i}", "prefill" if i < 4 else "decode", 50_000)


# -- routing ------------------------------------------------------------------------------------------------------------


def test_no_worker_idles_while_another_has_a_queue() -> None:
    """Case 35: single turns under cache-aware routing, one short shared beginning (dynamo #7836): work is spread."""
    at = flow(lambda _: 60, 40)
    requests = named(at, [7] * len(at), 640, 60)
    for r in requests:  # the beginning is 128 tokens of 640; the rest is each one's own
        r.names = [*r.names[:8], *((1 << 41 | r.index << 8 | b).to_bytes(8, "big") for b in range(32))]
    cluster = Cluster(pools(TIMES, 4, 4, slo=SLOS), requests)
    idle_beside_queue = 0
    for turn in range(1, 400):
        cluster.run(until_s=turn * 0.1)
        for role in ("prefill", "decode"):
            mine = [w.num_requests for w in cluster.workers.values() if cluster.roles[w.id] == role]
            idle_beside_queue += min(mine) == 0 and max(mine) > 4
    assert idle_beside_queue == 0
    end(cluster)
    assert all(w.num_prefill_tokens > 0 for w in list(cluster.workers.values())[:4])


def test_a_hot_prefix_is_spread() -> None:
    """Case 37: 60 % of all traffic begins with the same 4,000 tokens: it is soon cached on every worker and none drowns
    (one alone would need 1.3 times the time there is)."""
    at = flow(lambda _: 60, 20)
    rng = np.random.default_rng(1)
    groups = [0 if rng.random() < 0.6 else 1 + i for i in range(len(at))]
    requests = named(at, groups, 4096, 30)
    cluster = Cluster(pools(TIMES, 4, 2, slo=SLOS), requests)
    end(cluster)
    work = [w.busy_s for w in list(cluster.workers.values())[:4]]
    assert sum(work) > 1.3 * 20
    assert all(0.2 * 20 < busy < 0.9 * 20 for busy in work)
    assert attainment(requests, SLOS) > 0.95
    computed = sum(w.num_prefill_tokens for w in cluster.workers.values())
    assert computed < 0.6 * 4096 * len(at)


# -- the simulator itself -----------------------------------------------------------------------------------------------


def test_arrivals_beyond_the_horizon_have_not_arrived() -> None:
    """Case 41: a run that stops before them can go on, and ends as one that did not stop."""
    whole, parts = poisson(200, 20, seed=1), poisson(200, 20, seed=1)
    end(Cluster(pools(TIMES, 1, 1, slo=SLOS), whole))
    cluster = Cluster(pools(TIMES, 1, 1, slo=SLOS), parts)
    cluster.run(until_s=5.0)
    assert all(r.stage == "new" for r in parts if r.arrival_s > 5.0)
    assert cluster.num_arrived == sum(r.arrival_s <= 5.0 for r in parts)
    end(cluster)
    assert [(r.first_s, r.end_s) for r in parts] == [(r.first_s, r.end_s) for r in whole]


@pytest.mark.slow
def test_twenty_thousand_requests_in_the_memory_of_their_number() -> None:
    """Case 42, a fiftieth of it: at most 2 KiB a request (a million are then 2 GiB; 4 are allowed)."""
    tracemalloc.start()
    requests = poisson(20_000, 1200, seed=0)
    cluster = Cluster(pools(TIMES, 50, 50, slo=SLOS), requests)
    cluster.run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(r.stage == "finished" for r in requests)
    assert peak < 20_000 * 2048


def test_a_trace_keeps_its_patience_through_what_is_done_to_it() -> None:
    rows = tuple(TraceRequest(float(i), 10, 5, (), 2.0) for i in range(4))
    trace = Trace(name="T", format="mooncake", requests=rows, block_tokens=0)
    fast = requests_of(prepared(trace, rate=4.0), 16, max_total=100)
    assert [r.leaves_s - r.arrival_s for r in fast] == pytest.approx([2.0] * 4)


# -- a prefix that is sent -----------------------------------------------------------------------------------------------


def halves() -> list[SimRequest]:
    """One prompt of 8,192 tokens, and a second later eight more that share its first half."""
    requests = named([0.0, *[1.0] * 8], [1] * 9, 8192, 5)
    for r in requests:
        r.names = [*r.names[:256], *((1 << 41 | r.index << 9 | b).to_bytes(8, "big") for b in range(256))]
    return requests


def sending(requests: list[SimRequest], faults: Sequence[Fault] = ()) -> Cluster:
    """Four prefill workers; to send 4,096 tokens takes 27 ms, to compute them 90."""
    plan = pools(TIMES, 4, 2, slo=SLOS, bytes_per_s=2e10, physics=Physics(start_s=1.0, lease_s=2.0))
    setup = msgspec.structs.replace(plan.setup, fetch=PrefixFetch(base_s=0.001, token_s=131_072 / 2e10))
    return Cluster(msgspec.structs.replace(plan, setup=setup), requests, faults=faults)


def test_a_prefix_is_sent_to_the_worker_that_is_free() -> None:
    """The holder has a queue: others have the prefix sent, compute the rest, and hold it from then on. Its port sends one
    after the other, so that for some it is sooner to compute all."""
    requests, plain = halves(), halves()
    with_, without = sending(requests), Cluster(pools(TIMES, 4, 2, slo=SLOS, bytes_per_s=2e10), plain)
    for cluster in (with_, without):
        end(cluster)
    assert [r.fetched for r in requests].count(4096) == 3
    assert np.mean([r.ttft_s for r in requests]) < np.mean([r.ttft_s for r in plain])


@pytest.mark.parametrize("kind", ["kill", "cut", "hang up"])
@pytest.mark.parametrize("worker", range(4))
def test_a_prefix_that_does_not_come_is_computed(kind: str, worker: int) -> None:
    """Its owner dies, or its reader, or the link is cut for longer than a lease, or nobody wants it any more."""
    requests = halves()
    faults = []
    if kind == "hang up":
        for request in requests[1 + worker :: 4]:
            request.leaves_s = 1.01
    else:
        faults.append(Fault(at_s=1.01, kind=kind, worker=worker, lasts_s=30.0))  # type: ignore[arg-type]
    cluster = sending(requests, faults)
    cluster.run(until_s=1.005)
    assert any(r.stage == "fetching" for r in requests)
    cluster.check()
    end(cluster)
    assert sum(r.stage == "cancelled" for r in requests) == (2 if kind == "hang up" else 0)
