import asyncio

import pytest

from mortice.bench.goodput import GoodputSearch


def search(passes, *, start=1.0, target=0.9, issued=1000, **more):
    """Run a search against a response: rate -> attainment."""
    found = GoodputSearch(target, **more)

    async def attempt(rate):
        return round(passes(rate) * issued), issued

    asyncio.run(found.run(attempt, start))
    return found


def cliff(at):
    return lambda rate: 1.0 if rate <= at else 0.0


@pytest.mark.parametrize("at", [0.3, 1.0, 3.7, 40.0])
def test_bisection_closes_in_from_below(at):
    found = search(cliff(at), max_probes=24)
    assert found.sustained <= at <= found.sustained * 1.06
    document = found.document(num_gpus=4)
    assert document["goodput_per_gpu"] == found.sustained / 4
    assert document["monotone"]
    assert document["bounded"]
    assert document["closed"]


def test_attainment_exactly_at_the_target_passes():
    found = search(lambda rate: 0.9 if rate <= 2 else 0.899, max_probes=24)
    assert found.sustained == pytest.approx(2.0, rel=0.05)


def test_nothing_passes():
    found = search(lambda rate: 0.0)
    document = found.document(1)
    assert document["goodput_per_gpu"] == 0.0
    assert document["sustained_rate"] == 0.0
    assert not document["closed"]


def test_nothing_fails_is_a_lower_bound():
    document = search(lambda rate: 1.0, max_probes=5).document(1)
    assert not document["bounded"]
    assert document["first_failed_rate"] is None
    assert document["sustained_rate"] > 1


def test_an_island_above_a_failure_is_reported_and_not_promised():
    def response(rate):
        return 0.5 if 2.0 < rate <= 3.0 else 1.0 if rate <= 6.0 else 0.0

    document = search(response, start=1.0, max_probes=24).document(1)
    assert not document["monotone"]
    assert document["sustained_rate"] <= 2.0
    assert document["largest_passed_rate"] > 3.0


def test_a_hole_below_the_answer_is_found_by_looking_once_more():
    found = search(lambda rate: 0.0 if 1.5 < rate < 3.8 else cliff(8.0)(rate), start=4.0, max_probes=24)
    assert 1.4 < found.sustained <= 1.5
    assert found.largest_passed > 7
    assert not found.document(1)["monotone"]


def test_probes_are_limited_and_listed_by_rate():
    found = search(cliff(1000.0), max_probes=6)
    document = found.document(1)
    rates = [probe["rate"] for probe in document["probes"]]
    assert rates == sorted(rates)
    assert len(rates) <= 6 + 2


def test_few_requests_decide_nothing():
    document = search(cliff(2.0), issued=10).document(1)
    assert not any(probe["decided"] for probe in document["probes"] if probe["passed"])
