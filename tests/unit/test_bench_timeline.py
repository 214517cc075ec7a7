import pytest
from hypothesis import given
from hypothesis import strategies as st

from mortice.bench.timeline import Timeline, share_tokens, spread_gaps


def timeline(chunk_s, num_tokens=None, chars=None, **more):
    return Timeline(
        index=0,
        prompt_len=8,
        output_len=8,
        sent_s=10.0,
        ended_s=99.0,
        chunk_s=chunk_s,
        chunk_chars=chars or [4] * len(chunk_s),
        usage_tokens=num_tokens,
        **more,
    )


def test_a_hand_made_timeline():
    t = timeline([10.5, 10.6, 10.8, 11.2], num_tokens=4)
    assert t.ttft_s == pytest.approx(0.5)
    assert t.e2e_s == pytest.approx(1.2)
    assert t.tpot_s == pytest.approx(0.7 / 3)
    assert t.itl_s() == pytest.approx([0.1, 0.2, 0.4])


def test_tpot_of_one_token_is_undefined():
    t = timeline([10.5], num_tokens=1)
    assert t.tpot_s is None
    assert t.itl_s() == []
    assert t.e2e_s == t.ttft_s


def test_tpot_divides_by_the_tokens_of_usage_not_by_chunks():
    t = timeline([10.5, 11.0, 11.5], num_tokens=9)
    assert t.tpot_s == pytest.approx(1.0 / 8)


def test_a_chunk_of_several_tokens_spreads_its_gap():
    t = timeline([10.5, 10.9], num_tokens=5, chunk_tokens=[1, 4])
    assert t.itl_s() == pytest.approx([0.1] * 4)


def test_tokens_of_the_first_chunk_make_no_zeros():
    t = timeline([10.5, 10.9], num_tokens=5, chunk_tokens=[3, 2])
    assert t.itl_s() == pytest.approx([0.2, 0.2])


def test_counts_that_contradict_usage_are_not_believed():
    t = timeline([10.5, 10.9], num_tokens=6, chunk_tokens=[1, 1], chars=[4, 8])
    assert sum(t.tokens_by_chunk()) == 6


def test_without_usage_a_chunk_is_a_token():
    t = timeline([10.5, 10.9, 11.0])
    assert t.num_tokens == 3
    assert t.tokens_by_chunk() == [1, 1, 1]


def test_a_token_cut_into_chunks_lends_its_gap_on():
    assert spread_gaps([0.0, 1.0, 3.0, 6.0], [1, 0, 1, 1]) == [3.0, 3.0]
    assert spread_gaps([0.0, 1.0, 3.0], [1, 1, 0]) == [3.0]


def test_tokens_follow_characters():
    assert share_tokens(6, [4, 4, 16]) == [2, 1, 3]
    assert share_tokens(3, [5, 5, 5]) == [1, 1, 1]
    assert share_tokens(2, [1, 9, 9]) == [1, 1, 0]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_shared_tokens_add_up_and_the_first_chunk_has_one(weights, num_tokens):
    shares = share_tokens(num_tokens, weights)
    assert sum(shares) == num_tokens
    assert shares[0] >= 1
    assert min(shares) >= (1 if num_tokens >= len(weights) else 0)


@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=40), st.integers(2, 200), st.data())
def test_gaps_add_up_to_last_minus_first(steps, num_tokens, data):
    instants = [sum(steps[: i + 1]) for i in range(len(steps))]
    weights = data.draw(st.lists(st.integers(1, 30), min_size=len(steps), max_size=len(steps)))
    counts = share_tokens(num_tokens, weights)
    gaps = spread_gaps(instants, counts)
    assert len(gaps) == sum(counts[1:])
    assert sum(gaps) == pytest.approx(instants[-1] - instants[0] if gaps else 0.0)
    assert min(gaps, default=0.0) >= 0
    if len(steps) > 1:
        assert gaps
