"""Targets, actions, forecasts, orders and degrees: each decision by itself, and the released planner's defects."""

import itertools
import math
import random

import msgspec
import pytest

from mortice.sched.actions import Bounds, Flip, Standing, Start, Stop, Undrain, reshape
from mortice.sched.capacity import Capacity, dopd_block_concurrency, dopd_ratio
from mortice.sched.fleet import Fleet
from mortice.sched.forecast import Arima, Ewma, LastValue, Quantile, Trusted
from mortice.sched.lengths import Lengths
from mortice.sched.observation import Demand, Observation, Tally, Target
from mortice.sched.parallelism import decode_degree, prefill_degree
from mortice.sched.policy import Dopd, DopdReleased, Mortice, Reactive, Scope
from mortice.sched.prefill_order import PrefillOrder
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes

H100_TP1 = WorkerTimes(  # Llama-3.1-70B FP8 on H100: 131 ms at 1,024 tokens
    prefill_base_s=0.005, prefill_token_s=0.000123, decode_base_s=0.0165, decode_sequence_s=5.5e-5,
    decode_context_s=4e-8, kv_tokens=120_000,
)  # fmt: skip
TIMES = WorkerTimes(
    prefill_base_s=0.01, prefill_token_s=0.0001, decode_base_s=0.015, decode_sequence_s=1e-4,
    decode_context_s=1e-7, kv_tokens=100_000,
)  # fmt: skip
SLOS = SLO(ttft_ms=500, tpot_ms=50)
CAPACITY = Capacity(prefill=TIMES, decode=TIMES, slo=SLOS)


def demand(rate: float = 10, prompt: float = 1000, output: float = 200, spread: float = 1.0) -> Demand:
    return Demand(
        rate=rate,
        prompt_mean=prompt,
        uncached_mean=prompt,
        uncached_square=prompt * prompt * spread,
        output_mean=output,
    )


def seen(**figures: float) -> Observation:
    return Observation(at_s=0.0, interval_s=10.0, **figures)  # type: ignore[arg-type]


def test_dopd_worked_example() -> None:
    """DOPD's published case: ISL 1024, OSL 245, 2040 blocks of 128 tokens: 226 at once (A8)."""
    assert dopd_block_concurrency(1024, 245, 2040, 128) == 226


def test_dopd_ratio_is_that_of_the_rates() -> None:
    ratio, concurrency = dopd_ratio(TIMES, TIMES, SLOS, demand())
    context = 1100
    assert concurrency == min(100_000 // 1100, int((0.05 - 0.015) / (1e-4 + 1e-7 * context)))
    produced = 1 / TIMES.prefill_s(1000)
    consumed = concurrency / (200 * TIMES.decode_s(concurrency, concurrency * context))
    assert ratio == pytest.approx(consumed / produced)


def test_outputs_of_one_token_divide_by_nothing_nowhere() -> None:
    """Released planner, defect 9."""
    for output in (0.0, 1.0):
        d = demand(output=output)
        for each in (Dopd(CAPACITY), DopdReleased(CAPACITY), Mortice(CAPACITY)):
            for can_scale in (True, False):
                target, _ = each.target(d, seen(num_arrived=100), Target(2, 2), Scope(4, 16, can_scale))
                assert target.prefill + target.decode + target.mixed >= 1


def test_the_released_planner_takes_a_ratio_for_a_count_and_ours_does_not() -> None:
    """Defects 1 and 2: at ten times the rate n_P stays, and n_D is requests of an interval over a concurrency."""
    released, literal = DopdReleased(CAPACITY), Dopd(CAPACITY)
    scope, now = Scope(4, 1000, True), Target(2, 2)
    low, high = (released.target(demand(r), seen(), now, scope)[0] for r in (10, 100))
    assert low.prefill == high.prefill
    low, high = (literal.target(demand(r), seen(), now, scope)[0] for r in (10, 100))
    assert high.prefill > 5 * low.prefill


def test_a_budget_below_the_minimums_ends_and_keeps_the_minimums() -> None:
    """Defect 4: a loop that shrinks until the sum fits never ends here."""
    bounds = Bounds(min_prefill=3, min_decode=3, max_gpus=4)
    fitted = bounds.fit(Target(10, 10))
    assert (fitted.prefill, fitted.decode) == (3, 3)


@pytest.mark.parametrize("gpus", [(1, 1), (1, 2), (2, 1), (4, 3)])
def test_targets_fit_the_budget(gpus: tuple[int, int]) -> None:
    rng = random.Random(repr(gpus))
    for _ in range(300):
        budget = rng.randint(2 * max(gpus), 40)
        bounds = Bounds(min_prefill=1, max_gpus=budget, prefill_gpus=gpus[0], decode_gpus=gpus[1])
        fitted = bounds.fit(Target(rng.randint(0, 30), rng.randint(0, 30), rng.randint(0, 10)))
        assert bounds.of(fitted) <= budget
        assert fitted.prefill >= 1
        assert fitted.decode + fitted.mixed >= 1


def test_reshape_reaches_the_target_without_ever_exceeding_the_budget() -> None:
    """Random fleets; actions are carried out one at a time, starts late, stops later still."""
    for number in range(200):
        rng = random.Random(number)
        gpus = rng.choice([(1, 1), (1, 2), (2, 1)])
        bounds = Bounds(max_gpus=24, prefill_gpus=gpus[0], decode_gpus=gpus[1], max_flips=3)
        workers = {
            f"w{i}": Standing(f"w{i}", rng.choice(["prefill", "decode"]), rng.random()) for i in range(6)
        }
        target = bounds.fit(Target(rng.randint(1, 10), rng.randint(1, 10)))
        starting = {"prefill": 0, "decode": 0, "mixed": 0}
        for turn in range(30):
            for action in reshape(list(workers.values()), starting, target, bounds):
                match action:
                    case Flip(worker_id, role) | Undrain(worker_id, role):
                        workers[worker_id] = Standing(worker_id, role, 0.0)
                    case Start(role):
                        starting[role] += 1
                    case Stop(worker_id):
                        w = workers[worker_id]
                        workers[worker_id] = Standing(worker_id, w.role, w.busy, True)
            used = sum(bounds.gpus(w.role) for w in workers.values())
            used += sum(bounds.gpus(r) * n for r, n in starting.items())
            assert used <= 24
            if turn % 2:
                for role, count in starting.items():
                    for i in range(count):
                        workers[f"n{turn}-{role}-{i}"] = Standing(f"n{turn}-{role}-{i}", role, 0.0)
                starting = dict.fromkeys(starting, 0)
            else:
                workers = {k: w for k, w in workers.items() if not w.is_draining}
        got = {role: sum(w.role == role for w in workers.values()) for role in ("prefill", "decode")}
        assert got == {"prefill": target.prefill, "decode": target.decode}, number


def test_reshape_takes_the_cheapest_way_and_the_least_busy_worker() -> None:
    standing = [
        Standing("a", "decode", 5.0), Standing("b", "decode", 1.0), Standing("c", "decode", 0.0, True),
        Standing("d", "prefill", 2.0),
    ]  # fmt: skip
    none = {"prefill": 0, "decode": 0, "mixed": 0}
    actions = reshape(standing, none, Target(3, 1), Bounds(max_gpus=4))
    assert actions == [Undrain("c", "prefill"), Flip("b", "prefill")]


def test_variance_of_lengths_alone_wants_more_prefill() -> None:
    """Bimodal prompts of the same mean: the wait grows with the second moment."""
    narrow, wide = demand(spread=1.0), demand(spread=3.0)
    assert CAPACITY.prefill_rate(4, wide) < 0.9 * CAPACITY.prefill_rate(4, narrow)
    counts = [CAPACITY.best_division(16, d)[0] for d in (narrow, demand(spread=8.0))]
    assert counts[1] > counts[0]
    assert dopd_ratio(TIMES, TIMES, SLOS, narrow) == dopd_ratio(TIMES, TIMES, SLOS, wide)


def test_the_best_division_is_the_best_of_all_divisions() -> None:
    for d in (demand(), demand(prompt=200, output=800), demand(prompt=6000, output=20), demand(spread=4)):
        for workers in (2, 3, 8, 17):
            prefill, rate = CAPACITY.best_division(workers, d)
            every = [CAPACITY.divided_rate(p, workers - p, d) for p in range(1, workers)]
            assert rate >= 0.97 * max(every), (workers, prefill)


def test_decode_workers_that_bend_carry_what_rigid_ones_do_and_the_best_is_that_of_all_divisions() -> None:
    for d in (demand(), demand(prompt=200, output=800), demand(prompt=6000, output=20), demand(spread=4)):
        for workers in (2, 3, 8, 17):
            rates = CAPACITY.bent_rates(workers, d)
            every = [CAPACITY.bent_rate(p, workers - p, d) for p in range(workers)]
            assert max(rates.values()) >= 0.97 * max(every), workers
            rigid = [CAPACITY.divided_rate(p, workers - p, d) for p in range(1, workers)]
            if d.uncached_square == d.uncached_mean**2:  # else bent ones mind the spread of contexts, too
                assert all(b >= 0.95 * r for b, r in zip(every[1:], rigid, strict=True)), (d, workers)


def test_a_longer_tail_of_prompts_leaves_bent_workers_less() -> None:
    """The work that falls into an answer's time varies with the second moment; where nothing bends it does not matter."""
    even, uneven = demand(prompt=4000, spread=1.0), demand(prompt=4000, spread=4.0)
    assert CAPACITY.bent_rate(0, 8, uneven) < 0.95 * CAPACITY.bent_rate(0, 8, even)


def test_short_answers_among_long_ones_leave_bent_workers_less() -> None:
    """Equal means: what decides is the share of answers that a prompt beside them spoils."""
    even, uneven = demand(), msgspec.structs.replace(demand(), output_uneven=4.0)
    assert CAPACITY.bent_rate(1, 3, uneven) < 0.97 * CAPACITY.bent_rate(1, 3, even)
    assert CAPACITY.decode_rate(3, uneven) == CAPACITY.decode_rate(3, even)


def test_a_worker_within_the_error_of_the_closed_form_is_added_once_requests_are_late() -> None:
    ours, now = Mortice(CAPACITY), Target(1, 1)
    carried = CAPACITY.bent_rates(2, demand())
    rate = max(carried.values())

    def wanted(rate: float, *, is_late: bool) -> int:
        scope = Scope(2, 16, can_scale=True, margin=0.15, is_late=is_late)
        target = ours.target(demand(rate), seen(), now, scope)[0]
        return target.prefill + target.decode + target.mixed

    assert wanted(1.1 * rate, is_late=False) == 2
    assert wanted(1.1 * rate, is_late=True) > 2
    assert wanted(1.3 * rate, is_late=False) > 2


def test_a_mix_is_that_of_the_last_requests_not_of_the_last_interval() -> None:
    """Thirty odd requests among hundreds move the mean by their share; a thousand replace it."""
    lengths = Lengths()
    for _ in range(20):
        lengths.add(seen(num_arrived=100, prompt_mean=1000.0, uncached_mean=1000.0, uncached_square=1e6))
    lengths.add(seen(num_arrived=10, prompt_mean=8000.0, uncached_mean=8000.0, uncached_square=6.4e7))
    assert 1000 < lengths.demand(1.0).prompt_mean < 1700
    lengths.add(seen(num_arrived=2000, prompt_mean=8000.0, uncached_mean=8000.0, uncached_square=6.4e7))
    assert lengths.demand(1.0).prompt_mean > 7000


def test_answers_under_way_count_before_they_end() -> None:
    """Answers of 20 or of 2,000 tokens, half and half, a token every 20 ms: in the first intervals only short ones end,
    and their mean says 20."""
    fleet = Fleet()
    worker = fleet.join("d", "decode", 1000)
    tally, lengths = Tally(), Lengths()
    long_ones = 0
    for interval in range(3):
        long_ones += 50
        worker.num_decoding = long_ones  # the short ones come and go within a second
        for _ in range(50):
            tally.arrived(100, 100)
            tally.ended(20, 0.1, 0.02)
        figures = tally.observe(10.0 * (interval + 1), 10.0, fleet, {}, 16)
        assert figures.output_mean == 20
        lengths.add(figures)
    assert 500 < lengths.demand(10.0).output_mean < 2000


def test_more_workers_never_carry_less() -> None:
    d = demand(spread=2)
    for rate in (CAPACITY.prefill_rate, CAPACITY.decode_rate, CAPACITY.mixed_rate):
        carried = [rate(n, d) for n in range(1, 20)]
        assert all(b >= 0.999 * a for a, b in itertools.pairwise(carried))


def test_an_slo_that_no_single_request_meets_does_not_scale_without_limit() -> None:
    hopeless = Capacity(prefill=TIMES, decode=TIMES, slo=SLO(ttft_ms=1, tpot_ms=1))
    target, _ = Mortice(hopeless).target(
        demand(rate=1), seen(num_arrived=10), Target(1, 1), Scope(2, 1000, True)
    )
    assert target.prefill + target.decode + target.mixed <= 4


def test_reactive_keeps_a_new_decode_worker_and_minds_the_survivors() -> None:
    """2 to 1 with the survivor at 1.4 times 70 %: refused (dynamo #9294)."""
    policy, scope = Reactive(), Scope(4, 16, True)
    up, _ = policy.target(demand(), seen(kv_use=0.95), Target(1, 1), scope)
    assert up.decode == 2
    kept, _ = policy.target(demand(), seen(kv_use=0.1), Target(1, 2), scope)
    assert kept.decode == 2
    alone, _ = Reactive().target(demand(), seen(kv_use=0.49), Target(1, 2), scope)
    assert alone.decode == 2
    free, _ = Reactive().target(demand(), seen(kv_use=0.2), Target(1, 2), scope)
    assert free.decode == 1


@pytest.mark.parametrize(
    "series",
    [[5.0] * 60, [float(i) for i in range(60)], [10 + 5 * math.sin(i / 3) for i in range(60)],
     [0.0] * 50 + [100.0] + [0.0] * 9, [random.Random(1).paretovariate(1.1) for _ in range(60)]],
)  # fmt: skip
@pytest.mark.parametrize("inner", [LastValue(), Ewma(), Quantile()])
def test_forecasts_are_finite_not_negative_and_bounded(inner: object, series: list[float]) -> None:
    trusted = Trusted(inner)  # type: ignore[arg-type]
    for value in series:
        trusted.add(value)
    value, _ = trusted.predict(5)
    assert 0 <= value <= 4 * max(series)


def test_arima_follows_a_season_and_takes_the_last_value_of_what_does_not_move() -> None:
    season = [10 + 5 * math.sin(i / 3) for i in range(30)]
    value, why = Arima().predict(season, 1), ""
    assert abs(value - (10 + 5 * math.sin(30 / 3))) < 2.5, why
    assert Arima().predict([4.0] * 30, 3) == 4.0
    assert Arima().predict([4.0, 5.0], 3) == 5.0


def test_a_forecaster_that_fails_is_not_believed() -> None:
    class Broken:
        def __init__(self, value: float) -> None:
            self.value = value

        def predict(self, past: object, steps: int) -> float:
            if self.value == 0:
                raise ValueError("singular")
            return self.value

    for value in (math.nan, math.inf, -3.0, 1e9, 0.0):
        trusted = Trusted(Broken(value))  # type: ignore[arg-type]
        trusted.add(7.0)
        trusted.add(math.nan)
        trusted.add(-1.0)
        got, why = trusted.predict(1)
        assert got == 7.0
        assert why


def test_the_quantile_looks_over_the_horizon() -> None:
    saw = [1.0, 1.0, 1.0, 9.0] * 12
    assert Quantile().predict(saw, 4) > 5
    assert Ewma().predict([*saw, 1.0], 4) < 5


class Prompt:
    def __init__(self, tokens: int, since_s: float = 0.0) -> None:
        self.tokens, self.since_s = tokens, since_s


def test_fcfs_batches_short_prompts_to_saturation_and_long_ones_alone() -> None:
    order = PrefillOrder()
    assert order.pick([Prompt(100), Prompt(200), Prompt(150), Prompt(400)], 0.0) == [0, 1, 2]
    assert order.pick([Prompt(4000), Prompt(10)], 0.0) == [0]
    assert order.pick([Prompt(100), Prompt(4000), Prompt(10)], 0.0) == [0]  # no look-ahead
    assert order.pick([], 0.0) == []


def test_length_aware_lets_short_prompts_pass_but_not_for_ever() -> None:
    order = PrefillOrder(order="length", max_wait_s=2.0)
    queue = [Prompt(100_000, 0.0), Prompt(200, 1.0), Prompt(100, 1.0)]
    assert order.pick(queue, 1.5, boundary=500) == [2, 1]
    assert order.pick(queue, 2.5, boundary=500) == [0]


def test_degrees_by_throughput_of_an_accelerator_or_else_by_latency() -> None:
    two = WorkerTimes(
        prefill_base_s=0.006, prefill_token_s=0.00006, decode_base_s=0.009, decode_sequence_s=6e-5,
        decode_context_s=6e-8, kv_tokens=300_000, gpus=2,
    )  # fmt: skip
    profiles = {1: TIMES, 2: two}
    assert prefill_degree(profiles, 1000, 0.5).tp == 1
    assert prefill_degree(profiles, 1000, 0.08).tp == 2
    none = prefill_degree(profiles, 1000, 0.01)
    assert (none.tp, none.meets) == (2, False)
    assert decode_degree(profiles, 1000, 0.012).tp == 2
    with pytest.raises(RequestError):
        decode_degree({}, 1000, 0.1)
