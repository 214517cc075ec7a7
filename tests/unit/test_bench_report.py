import pytest

from mortice.bench.load import LoadRun
from mortice.bench.report import attainment, measure, peak_concurrency, reached, request_record, token_rate
from mortice.bench.timeline import Timeline
from mortice.specs.slo import SLO


def good(sent_s=0.0, ttft_s=0.1, gap_s=0.01, num_tokens=11, output_len=11):
    chunk_s = [sent_s + ttft_s + i * gap_s for i in range(num_tokens)]
    return Timeline(
        index=0, prompt_len=4, output_len=output_len, sent_s=sent_s, ended_s=chunk_s[-1], chunk_s=chunk_s,
        chunk_chars=[1] * num_tokens, usage_tokens=num_tokens, prompt_tokens=4,
    )  # fmt: skip


def failed(sent_s=0.0, kind="refused", chunk_s=()):
    return Timeline(
        index=0, prompt_len=4, output_len=8, sent_s=sent_s, ended_s=sent_s + 1, failure=kind, detail="why",
        chunk_s=list(chunk_s), chunk_chars=[1] * len(chunk_s),
    )  # fmt: skip


LIMITS = SLO(ttft_ms=200, tpot_ms=20)


def test_failures_are_misses_even_after_a_first_token():
    share = attainment([good(), good(), failed(), failed(kind="error event", chunk_s=[0.05])], LIMITS)
    assert share["attainment"] == 0.5
    assert share["marginals"] == {"ttft_ms": 0.5, "tpot_ms": 0.5}


def test_joint_attainment_is_below_its_marginals():
    slow_start, slow_tokens = good(ttft_s=0.5), good(gap_s=0.05)
    share = attainment([good(), slow_start, slow_tokens, good()], LIMITS)
    assert share["attainment"] == 0.5
    assert share["marginals"] == {"ttft_ms": 0.75, "tpot_ms": 0.75}


def test_one_token_answers_meet_any_tpot_limit():
    only = [good(num_tokens=1), good(num_tokens=1)]
    assert attainment(only, SLO(tpot_ms=0.001))["attainment"] == 1.0
    assert attainment([*only, good(), failed()], SLO(tpot_ms=0.001))["num_met"] == 2
    figures = measure(LoadRun(only, 0.0, 1.0, False), SLO(), seed=0)
    assert figures["tpot_ms"]["num"] == 0
    assert figures["tpot_ms"]["mean"] is None


def test_all_rejected_attains_zero_not_undefined():
    share = attainment([failed(kind="status 429")] * 3, LIMITS)
    assert share["attainment"] == 0.0
    assert not share["reached"]
    assert attainment([], LIMITS)["attainment"] == 0.0
    figures = measure(LoadRun([failed(kind="status 429")] * 3, 0.0, 1.0, False), LIMITS, seed=0)
    assert figures["num_failed"] == 3
    assert figures["failures"] == {"status 429": 3}
    assert figures["failure_examples"] == {"status 429": "why"}
    assert figures["output_tokens_per_s"] == 0


def test_a_limit_is_inclusive_and_so_is_the_target():
    assert attainment([good(ttft_s=0.25)], SLO(ttft_ms=250))["attainment"] == 1.0
    assert reached(9, 10, 0.9)
    assert reached(63, 70, 0.9)
    assert not reached(62, 70, 0.9)


def test_near_the_target_it_is_not_decided():
    assert not attainment([good()] * 18 + [failed()] * 2, LIMITS)["decided"]
    assert attainment([good()] * 300, LIMITS)["decided"]
    assert attainment([failed()] * 50, LIMITS)["decided"]


def test_no_limit_no_attainment():
    assert attainment([good()], SLO()) is None


def test_rates_count_only_what_ended_well():
    figures = measure(LoadRun([good(), good(), failed()], 0.0, 2.0, False), SLO(), seed=0)
    assert figures["output_tokens_per_s"] == 11.0
    assert figures["requests_per_s"] == 1.0
    assert figures["input_tokens_per_s"] == 4.0
    assert figures["ttft_ms"]["p50"] == pytest.approx(100)
    assert figures["tpot_ms"]["mean"] == pytest.approx(10)
    assert figures["itl_ms"]["num"] == 20
    assert figures["e2e_ms"]["p99"] == pytest.approx(200)


def test_output_below_what_was_asked_is_counted():
    figures = measure(LoadRun([good(output_len=11), good(output_len=12)], 0.0, 2.0, False), SLO(), seed=0)
    assert figures["num_cut_short"] == 1


def test_concurrency_peaks_where_intervals_overlap():
    spans = [(0, 2), (1, 3), (2, 4), (5, 6)]
    timelines = [Timeline(0, 1, 1, sent_s=a, ended_s=b) for a, b in spans]
    assert peak_concurrency(timelines) == 2
    assert peak_concurrency([]) == 0


def test_the_token_rate_adds_up_to_the_tokens():
    timelines = [good(), good(sent_s=0.5)]
    rates = token_rate(timelines, 0.0, 1.0, 10)
    assert sum(rate * 0.1 for rate in rates) == pytest.approx(22)
    assert rates[0] == 0


def test_a_record_counts_from_the_start_of_the_run():
    record = request_record(good(sent_s=5.0), started_s=4.0)
    assert record["sent_s"] == 1.0
    assert record["ttft_ms"] == pytest.approx(100)
    assert request_record(failed(), 0.0)["failure"] == "refused"
