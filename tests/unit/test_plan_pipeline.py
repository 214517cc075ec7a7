"""The pipeline's closed form against a simulation that shares nothing with it, and the papers' special cases."""

import itertools
import random

import pytest

from mortice.plan.pipeline import (
    Stages,
    fits_budget,
    half_duplex_bound_s,
    iteration_s,
    layer_period_s,
    simulate,
    stage_budget_s,
)
from mortice.specs.errors import RequestError

SEED = 2507_19427


def stages(*times: float) -> Stages:
    gather, scatter = times[4:] or (0.0, 0.0)
    return Stages(
        attention_s=times[0],
        a2f_s=times[1],
        ffn_s=times[2],
        f2a_s=times[3],
        gather_s=gather,
        scatter_s=scatter,
    )


def test_the_closed_form_equals_the_simulation_on_5000_random_cases() -> None:
    """Tolerance 1e-9 relative: the form is exact, only the order of additions differs."""
    draw = random.Random(SEED)
    worst = 0.0
    bound = {"resource": 0, "latency": 0}
    for _ in range(5000):
        num_resources = draw.choice((4, 6))
        case = stages(*(draw.uniform(0.01, 1) ** draw.choice((1, 3)) for _ in range(num_resources)))
        m, num_layers = draw.randint(1, 6), draw.randint(1, 10)
        seen = simulate([case] * num_layers, m).makespan_s
        said = iteration_s(case, m, num_layers)
        bound["resource" if m * case.slowest_s >= case.total_s else "latency"] += 1
        worst = max(worst, abs(seen - said) / seen)
    assert worst < 1e-9, f"seed {SEED}"
    assert min(bound.values()) > 500, bound  # both branches were met


def test_the_steady_period_is_what_one_more_layer_adds() -> None:
    case = stages(0.3, 0.1, 0.25, 0.2)
    for m in (1, 2, 3, 4, 5):
        added = simulate([case] * 21, m).makespan_s - simulate([case] * 20, m).makespan_s
        assert added == pytest.approx(layer_period_s(case, m), rel=1e-9)


def test_too_few_micro_batches_are_bound_by_latency() -> None:
    long_link = stages(1, 2, 1, 2)
    assert layer_period_s(long_link, 1) == pytest.approx(6)
    assert layer_period_s(long_link, 2) == pytest.approx(6)
    assert layer_period_s(long_link, 4) == pytest.approx(8)


def test_a_shared_link_is_slower_than_the_duplex_formula_says() -> None:
    """m = 4 and both legs of a whole stage each: fine in duplex, impossible on one half-duplex resource."""
    case = stages(1, 1, 1, 1)
    duplex, shared = simulate([case] * 10, 4), simulate([case] * 10, 4, half_duplex=True)
    assert duplex.makespan_s == pytest.approx(iteration_s(case, 4, 10))
    assert shared.makespan_s > 1.8 * duplex.makespan_s
    assert shared.makespan_s >= half_duplex_bound_s(case, 4, 10)


def test_the_half_duplex_bound_is_only_a_bound() -> None:
    draw = random.Random(SEED)
    excess = []
    for _ in range(500):
        case = stages(*(draw.uniform(0.01, 1) for _ in range(4)))
        m, num_layers = draw.randint(1, 5), draw.randint(2, 10)
        seen = simulate([case] * num_layers, m, half_duplex=True).makespan_s
        excess.append(seen / half_duplex_bound_s(case, m, num_layers) - 1)
    assert min(excess) > -1e-9
    assert 0.2 < max(excess) < 0.7  # the reference saw up to 59 %


def test_layers_of_two_kinds_are_not_the_layers_of_their_mean() -> None:
    """A hybrid model: the period is set per kind of layer. Cheap layers do not pay for dear ones."""
    dear, cheap = stages(4, 0.5, 1, 0.5), stages(1, 0.5, 2, 0.5)
    mean = stages(2.5, 0.5, 1.5, 0.5)
    mixed = simulate([dear] * 10 + [cheap] * 10, 3).makespan_s
    assert mixed == pytest.approx(3 * (10 * 4 + 10 * 2), rel=0.05)
    assert mixed > 1.15 * iteration_s(mean, 3, 20)


def test_micro_batches_may_differ_and_one_may_be_empty() -> None:
    full, empty = stages(1, 0.2, 1, 0.4), stages(0, 0, 0, 0)
    some = simulate([[full, full, empty]] * 5, 3)
    every = simulate([full] * 5, 3)
    assert some.makespan_s < every.makespan_s
    assert some.busy_share("attention") <= 1
    with pytest.raises(RequestError, match="3 micro-batches"):
        simulate([[full, full]], 3)


def test_no_resource_serves_two_at_once_and_every_micro_batch_keeps_its_order() -> None:
    draw = random.Random(SEED)
    seen = simulate([stages(*(draw.uniform(0.1, 1) for _ in range(4))) for _ in range(8)], 4)
    for name in ("attention", "a2f", "ffn", "f2a"):
        turns = [i for i in seen.intervals if i.resource == name]
        assert len(turns) == 8 * 4
        assert all(a.end_s <= b.start_s + 1e-12 for a, b in itertools.pairwise(turns))
    for i in range(4):
        own = [x for x in seen.intervals if x.micro_batch == i]
        assert all(a.end_s <= b.start_s + 1e-12 for a, b in itertools.pairwise(own))


def test_step3_stage_budgets() -> None:
    """50 ms over 61 layers: 273.2 us in three stages (the paper truncates to 272, 0.5 %), 204.9 us in four."""
    assert stage_budget_s(0.050, 61) * 1e6 == pytest.approx(273.22, abs=0.01)
    assert stage_budget_s(0.050, 61) * 1e6 == pytest.approx(272, rel=0.005)
    assert stage_budget_s(0.050, 61, 4) * 1e6 == pytest.approx(204.9, abs=0.05)


def test_with_three_stages_both_legs_share_one() -> None:
    """Three micro-batches, attention and FFN of a whole stage: Sigma <= 3 M leaves one stage for both legs."""
    budget = 273.2
    full = stages(budget, 91, budget, 182)
    assert fits_budget(full, budget) == {"attention": True, "ffn": True, "communication": True}
    assert layer_period_s(full, 3) == pytest.approx(3 * budget)
    late = stages(budget, 110, budget, 182)
    assert not fits_budget(late, budget)["communication"]
    assert layer_period_s(late, 3) > 3 * budget
    assert fits_budget(stages(204, 204, 204, 204), 204.9, 4)["a2f"]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: stages(-1, 0, 0, 0), "attention_s"),
        (lambda: stages(0, 0, float("nan"), 0), "ffn_s"),
        (lambda: iteration_s(stages(1, 1, 1, 1), 0, 3), "num_micro_batches"),
        (lambda: iteration_s(stages(1, 1, 1, 1), 3, 0), "num_layers"),
        (lambda: stage_budget_s(0.05, 61, 5), "num_stages"),
    ],
)
def test_a_mistake_is_named(call, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        call()
    assert caught.value.param == field
