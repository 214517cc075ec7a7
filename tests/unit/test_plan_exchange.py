"""Expert exchange: what is deduplicated, on which tier, and the published dispatch times."""

import pytest

from mortice.plan.exchange import (
    Tier,
    collective_s,
    dispatch_load,
    exchange_s,
    expected_imbalance,
    expected_visits,
    expected_visits_with_replacement,
)
from mortice.specs.errors import RequestError

DEEPSEEK = {"hidden_size": 7168, "num_experts": 256, "top_k": 8}


@pytest.mark.parametrize(("ranks", "visits"), [(8, 5.25), (16, 6.45), (32, 7.18), (64, 7.58)])
def test_expected_copies_with_replacement(ranks: int, visits: float) -> None:
    assert expected_visits_with_replacement(ranks, 8) == pytest.approx(visits, abs=0.01)
    # Distinct experts spread a little wider.
    assert visits < expected_visits(ranks, 256, 8) < 8


def test_one_expert_a_rank_visits_top_k_ranks() -> None:
    assert expected_visits(256, 256, 8) == pytest.approx(8)
    assert expected_visits(1, 256, 8) == pytest.approx(1)
    assert expected_visits(3, 7, 2) <= 2
    with pytest.raises(RequestError, match="1 to 256"):
        expected_visits(300, 256, 8)


def test_gb200_ep64_dispatch() -> None:
    """4,096 tokens a rank in BF16 within one NVLink domain: 902 us at 53 % of 900 GB/s, and 41 us at 128 tokens with
    15 us of preparation; 15 % as the reference allows an alpha-beta model."""
    tier = Tier(bandwidth=0.53 * 900e9, latency_s=15e-6)
    for tokens, measured_us in ((128, 41), (4096, 902)):
        load = dispatch_load(tokens=tokens, element_bytes=2, num_ranks=64, ranks_per_domain=72, **DEEPSEEK)
        assert load.scale_out_bytes == 0
        assert exchange_s(load, tier, None) * 1e6 == pytest.approx(measured_us, rel=0.15)


def test_dedup_lowers_what_crosses_domains() -> None:
    """EP72 in one domain sends nothing across; EP144 over two does, and a copy a domain is less than one an expert."""
    one = dispatch_load(
        tokens=128,
        element_bytes=1,
        num_ranks=72,
        ranks_per_domain=72,
        hidden_size=7168,
        num_experts=288,
        top_k=8,
    )
    two = dispatch_load(
        tokens=128,
        element_bytes=1,
        num_ranks=144,
        ranks_per_domain=72,
        hidden_size=7168,
        num_experts=288,
        top_k=8,
    )
    assert one.scale_out_bytes == 0
    assert 0 < two.scale_out_bytes < 0.3 * two.naive_scale_out_bytes
    assert two.domains_visited == pytest.approx(2, abs=0.02)


def test_the_slower_tier_counts_and_must_be_given() -> None:
    load = dispatch_load(tokens=128, element_bytes=1, num_ranks=32, ranks_per_domain=8, **DEEPSEEK)
    up, out = Tier(bandwidth=160e9, latency_s=5e-6), Tier(bandwidth=40e9, latency_s=10e-6)
    overlapped, serial = exchange_s(load, up, out), exchange_s(load, up, out, overlapped=False)
    assert overlapped < serial
    with pytest.raises(RequestError, match="scale-out"):
        exchange_s(load, up, None)
    with pytest.raises(RequestError, match="nearest is 64"):
        dispatch_load(tokens=1, element_bytes=1, num_ranks=70, ranks_per_domain=8, **DEEPSEEK)


def test_imbalance_falls_with_the_batch_and_grows_with_the_group() -> None:
    small, large = (expected_imbalance(n, 8, 32) for n in (64, 4096))
    assert small > large > 1
    assert expected_imbalance(4096, 8, 256) > large
    assert expected_imbalance(4096, 8, 1) == 1


def test_collectives_by_bus_bandwidth() -> None:
    """H100 x 8: all-reduce 15.8 us + 2 (7/8) n / 445 GB/s."""
    seconds = collective_s("all_reduce", num_bytes=64e6, num_ranks=8, bandwidth=445e9, latency_s=15.8e-6)
    assert seconds == pytest.approx(15.8e-6 + 1.75 * 64e6 / 445e9)
    assert collective_s("all_gather", num_bytes=64e6, num_ranks=1, bandwidth=1) == 0
    with pytest.raises(RequestError, match="all_gather"):
        collective_s("gossip", num_bytes=1, num_ranks=2, bandwidth=1)
