import gzip
from itertools import pairwise
from pathlib import Path

import pytest

from mortice.bench.arrivals import Arrival, jittered
from mortice.specs.errors import RequestError
from mortice.specs.workload import Clip, Trace, TraceRequest, read_trace

DATA = Path(__file__).parents[1] / "data"
AZURE = DATA / "azure2023_conv_head.csv"
MOONCAKE = DATA / "mooncake_conversation_head.jsonl"
BURSTGPT = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,1,2.0,ChatGPT,472,18,490,Conversation log\n"
    "45,1,0.0,ChatGPT,1087,0,1087,Conversation log\n"
    "118.5,2,9.1,GPT-4,417,276,693,API log\n"
)


def test_azure_keeps_seven_digits():
    trace = read_trace(AZURE)
    assert trace.format == "azure"
    assert len(trace.requests) == 40
    first, second = trace.requests[:2]
    assert first == TraceRequest(0.0, 374, 44)
    assert (second.at_s, second.prompt_len, second.output_len) == (4.314579, 396, 109)


@pytest.mark.parametrize(
    ("first", "second", "gap"),
    [
        ("2023-11-16 18:15:46.6805901", "2023-11-16 18:15:46.6805903", 2e-7),
        ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01+00:00", 0.99007),
        ("2023-12-31 23:59:59.5", "2024-01-01 00:00:00.25Z", 0.75),
    ],
)
def test_azure_timestamps(tmp_path, first, second, gap):
    file = tmp_path / "a.csv"
    file.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{first},1,1\n{second},1,1\n")
    assert read_trace(file).requests[1].at_s == pytest.approx(gap, abs=1e-9)


def test_mooncake_has_prefix_blocks():
    trace = read_trace(MOONCAKE)
    assert (trace.format, trace.block_tokens, len(trace.requests)) == ("mooncake", 512, 24)
    assert trace.requests[0].blocks[:2] == (0, 1)
    assert trace.requests[7].at_s == 3.0
    for request in trace.requests:
        assert len(request.blocks) == -(-request.prompt_len // 512)


def test_burstgpt_leaves_failed_calls_out(tmp_path):
    file = tmp_path / "BurstGPT.csv"
    file.write_text(BURSTGPT)
    trace = read_trace(file)
    assert trace.requests == (TraceRequest(0.0, 472, 18), TraceRequest(113.5, 417, 276))
    assert trace.num_failed_rows == 1


def test_gzip_is_told_by_its_bytes(tmp_path):
    file = tmp_path / "trace"
    file.write_bytes(gzip.compress(AZURE.read_bytes()))
    assert read_trace(file).requests == read_trace(AZURE).requests


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "no Azure, Mooncake or BurstGPT"),
        ("", "no Azure, Mooncake or BurstGPT"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "line 2: not a timestamp"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,x,1\n", "line 2"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 2}\n{"timestamp": 1}\n', "line 2"),
        ('{"timestamp": 0, "input_length": 0, "output_length": 2}\n', "line 1: a prompt"),
    ],
)
def test_a_bad_file_says_where(tmp_path, content, message):
    file = tmp_path / "t"
    file.write_text(content)
    with pytest.raises(RequestError, match=message):
        read_trace(file)


def test_a_missing_file_is_the_users_mistake(tmp_path):
    with pytest.raises(RequestError, match="cannot read"):
        read_trace(tmp_path / "none")


def made(*rows):
    return Trace(name="t", format="azure", requests=tuple(TraceRequest(*row) for row in rows))


def test_scale_and_cut():
    trace = made((0.0, 10, 1), (2.0, 20, 2), (4.0, 30, 3))
    assert trace.mean_rate == 0.5
    assert [r.at_s for r in trace.scaled(2.0).requests] == [0.0, 1.0, 2.0]
    assert len(trace.until(4.0).requests) == 2


def test_clip_rules_count_what_they_touch():
    trace = made((0.0, 10, 1), (2.0, 20, 2), (4.0, 30, 3))
    short = trace.clipped(Clip(max_input=15, max_output=2))
    assert [(r.prompt_len, r.output_len) for r in short.requests] == [(10, 1), (15, 2), (15, 2)]
    assert short.num_clipped == 2
    dropped = trace.clipped(Clip(max_input=20, rule="drop"))
    assert [r.prompt_len for r in dropped.requests] == [10, 20]
    assert dropped.num_clipped == 1


def test_jitter_undoes_the_tick_within_the_tick():
    trace = read_trace(MOONCAKE)
    moved = jittered(trace, 3.0, seed=1)
    assert moved == jittered(trace, 3.0, seed=1)
    assert [r.at_s for r in moved.requests] == sorted(r.at_s for r in moved.requests)
    assert len({r.at_s for r in moved.requests}) == len(trace.requests)
    before = {(r.prompt_len, r.output_len): r.at_s for r in trace.requests}
    assert all(0 <= r.at_s - before[r.prompt_len, r.output_len] < 3.0 for r in moved.requests)


def gaps_of(times):
    return [b - a for a, b in pairwise(times)]


@pytest.mark.parametrize(("process", "cv"), [("poisson", 1.0), ("gamma", 2.0), ("gamma", 0.5)])
def test_arrivals_have_the_rate_and_the_variation(process, cv):
    gaps = gaps_of(Arrival(process=process, rate=4.0, cv=cv).times(20_000, seed=3))
    mean = sum(gaps) / len(gaps)
    spread = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.25, rel=0.05)
    assert spread / mean == pytest.approx(cv, rel=0.06)


def test_two_rates_share_their_luck():
    slow, fast = (Arrival(rate=rate).times(50, seed=1) for rate in (1.0, 2.0))
    assert fast == pytest.approx([t / 2 for t in slow])
    assert Arrival(rate=1.0).times(0, seed=1) == []
    assert Arrival(rate=1.0).times(1, seed=1) == [0.0]
