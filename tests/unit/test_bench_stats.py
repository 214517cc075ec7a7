import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mortice.bench.stats import overlap, percentile, summary, wilson

finite = st.floats(-1e9, 1e9, allow_nan=False)


def by_hand(values, q):
    """Linear interpolation between order statistics, written out."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * q / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


@given(st.lists(finite, min_size=1, max_size=60), st.floats(0, 100))
def test_a_percentile_interpolates_between_order_statistics(values, q):
    assert percentile(values, q) == pytest.approx(by_hand(values, q), rel=1e-9, abs=1e-3)


@given(st.lists(finite, min_size=1, max_size=60))
def test_percentiles_are_ordered_and_inside_the_data(values):
    figures = summary(values, seed=0, intervals=False)
    chain = [figures[name] for name in ("min", "p50", "p90", "p99", "max")]
    assert chain == sorted(chain)
    assert (chain[0], chain[-1]) == (min(values), max(values))


def test_known_percentiles():
    assert percentile([1, 2, 3, 4], 50) == 2.5
    assert percentile([10], 99) == 10
    assert percentile(range(101), 90) == 90


def test_nothing_measured_is_null_not_zero():
    assert summary([], seed=0) == {
        "num": 0, "mean": None, "min": None, "p50": None, "p90": None, "p99": None, "max": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("met", "issued", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (180, 200, 0.8506, 0.9343), (1, 2, 0.0945, 0.9055)],
)
def test_wilson_against_published_values(met, issued, low, high):
    assert wilson(met, issued) == pytest.approx((low, high), abs=2e-4)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_stays_a_share(issued, data):
    met = data.draw(st.integers(0, issued))
    low, high = wilson(met, issued)
    assert 0 <= low <= met / issued <= high <= 1


def test_one_point_apart_with_200_requests_is_a_tie():
    assert overlap(wilson(180, 200), wilson(182, 200))
    assert not overlap(wilson(100, 200), wilson(180, 200))


def test_the_bootstrap_is_seeded_and_holds_the_estimate():
    values = np.random.default_rng(1).exponential(100, 200)
    one, two = summary(values, seed=7), summary(values, seed=7)
    assert one == two
    for name in ("mean", "p50", "p90", "p99"):
        low, high = one["ci95"][name]
        assert low <= one[name] <= high
    assert summary(values, seed=8)["ci95"] != one["ci95"]
