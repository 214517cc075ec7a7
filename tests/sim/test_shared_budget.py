"""Case 32: two models, or two classes of SLO, under one budget of accelerators."""

import random

import pytest

from mortice.sched.actions import Bounds
from mortice.sched.budget import Claim, bounds, shares
from mortice.sched.controller import Pace
from mortice.sim.cluster import Cluster
from mortice.sim.request import SimRequest
from mortice.sim.scenario import arrivals, pools
from mortice.sim.shared import run_together
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes

TIMES = WorkerTimes(
    prefill_base_s=0.01, prefill_token_s=1e-4, decode_base_s=0.02, decode_sequence_s=1e-4, decode_context_s=1e-8,
    kv_tokens=200_000,
)  # fmt: skip


def claim(held: int, wanted: int, urgency: float = 0.0, least: int = 1, unit: int = 1) -> Claim:
    return Claim(held=held, least=least, wanted=wanted, urgency=urgency, unit=unit)


def test_wishes_that_fit_are_granted_and_no_more() -> None:
    assert shares(10, [claim(2, 3), claim(2, 4)]) == [3, 4]


def test_what_is_short_goes_to_the_urgent_and_else_in_proportion() -> None:
    assert shares(6, [claim(2, 5, 0.2), claim(2, 5, 0.0)]) == [5, 1]
    assert shares(6, [claim(2, 8), claim(2, 4)]) == [4, 2]


def test_a_bound_grows_only_by_what_nobody_holds() -> None:
    """The first is to give two back; until they have drained the second gets what is free."""
    assert bounds(8, [claim(6, 4), claim(1, 4, 0.5)]) == [4, 2]
    assert bounds(8, [claim(4, 4), claim(2, 4, 0.5)]) == [4, 4]


def test_least_of_all_beyond_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 6 accelerators of 5"):
        shares(5, [claim(0, 4, least=3), claim(0, 4, least=3)])


def test_never_above_the_budget_whatever_is_claimed() -> None:
    seed = 7
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(2000):
        claims = [
            claim(
                rng.randrange(0, 9),
                rng.randrange(0, 40),
                rng.random(),
                rng.randrange(1, 4),
                rng.choice([1, 2, 4]),
            )
            for _ in range(rng.randrange(1, 6))
        ]
        budget = max(sum(c.held for c in claims), sum(c.least for c in claims)) + rng.randrange(0, 9)
        found = bounds(budget, claims)
        assert sum(max(c.held, most) for c, most in zip(claims, found, strict=True)) <= budget
        assert sum(shares(budget, claims)) <= budget


def flow(early: float, late: float) -> list[SimRequest]:
    """Two halves of 150 s, requests a second in each."""
    at = [i / early for i in range(int(150 * early))] + [150 + i / late for i in range(int(150 * late))]
    return arrivals(at, [2000] * len(at), [100] * len(at))


def test_accelerators_follow_the_load_from_one_model_to_the_other() -> None:
    """Each alone would want most of the six that there are."""
    made = [
        Cluster(
            pools(
                TIMES, 0, 0, 3, slo=SLO(ttft_ms=2000, tpot_ms=60), policy="mortice", bounds=Bounds(max_gpus=3),
                pace=Pace(period_s=5, start_s=10, patience=2),
            ),
            flow(*rates),
        )
        for rates in ((12.0, 1.0), (1.0, 12.0))
    ]  # fmt: skip
    most = run_together(made, budget=6)
    assert most <= 6
    first, second = ([d.seen.prefill + d.seen.decode + d.seen.mixed for d in c.decisions] for c in made)
    assert first[24] > second[24]
    assert first[56] < second[56]
    for cluster in made:
        cluster.check()
        assert all(r.stage == "finished" for r in cluster.requests)
