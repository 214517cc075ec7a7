"""`mortice sim`: the verbs end to end, and every wrong input as one line."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mortice.cli import app
from mortice.specs.errors import MorticeError, RequestError

DATA = Path(__file__).parents[1] / "data"
TRACE = DATA / "azure2023_conv_head.csv"
MOONCAKE = DATA / "mooncake_conversation_head.jsonl"
DOCUMENT = """
model: llama-3.1-8b
prefill: 1
decode: 1
limits: {token_budget: 2048}
cluster: {hardware: h100, slo: {ttft_ms: 500, tpot_ms: 50}}
"""


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    path = tmp_path / "D.yaml"
    path.write_text(DOCUMENT)
    return path


def call(*arguments: object) -> dict:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    with pytest.raises(RequestError) as caught:
        CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("policy", ["static", "reactive", "dopd", "dopd-released", "mortice"])
def test_run_prints_what_was_felt(deployment: Path, policy: str) -> None:
    answer = call(
        "sim", "run", "--deployment", deployment, "--trace", TRACE, "--policy", policy, "--seed", 0, "--json"
    )
    assert answer["requests"] == answer["finished"] == 40
    assert answer["policy"] == policy
    assert 0 < answer["ttft_ms"]["p50"] < 100
    assert answer["attainment"] == 1.0
    assert answer["attainment_ci95"][0] < 1.0
    assert answer["gpu_hours"] > 0


def test_the_same_seed_prints_the_same_bytes(deployment: Path) -> None:
    command = [
        "sim",
        "run",
        "--deployment",
        deployment,
        "--trace",
        TRACE,
        "--faults",
        5,
        "--jitter",
        1,
        "--json",
    ]
    assert call(*command) == call(*command)
    assert call(*command) != call(*command, "--seed", 1)


def test_prefixes_of_a_trace_are_found_again(deployment: Path) -> None:
    answer = call("sim", "run", "--deployment", deployment, "--trace", MOONCAKE, "--json")
    assert answer["finished"] == answer["requests"]


def test_exact_and_counted_runs_agree(deployment: Path) -> None:
    command = ["sim", "run", "--deployment", deployment, "--trace", TRACE, "--json"]
    counted, exact = call(*command), call(*command, "--exact")
    assert counted["ttft_ms"]["p50"] == pytest.approx(exact["ttft_ms"]["p50"], rel=1e-6)
    assert counted["tpot_ms"]["p90"] == pytest.approx(exact["tpot_ms"]["p90"], rel=0.01)


def test_a_log_replays_and_a_changed_one_fails(deployment: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    call(
        "sim", "run", "--deployment", deployment, "--trace", TRACE, "--policy", "mortice", "--faults", 4, "--log", log,
        "--json",
    )  # fmt: skip
    answer = call("sim", "replay", log, "--json")
    assert answer["num_differences"] == 0
    assert answer["num_answers"] > 40
    log.write_text(log.read_text().replace('"decode":"w2"', '"decode":"w9"', 1))
    with pytest.raises(MorticeError, match="1 of"):
        CliRunner().invoke(app, ["sim", "replay", str(log)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("h100", "h900"), "h900"),
        (("llama-3.1-8b", "llama-3.1-405b"), "cluster.prefill_tp.*does not fit"),
        (("hardware: h100, ", ""), "cluster.hardware"),
        (("tpot_ms: 50", "tpot_ms: -1"), "tpot_ms"),
        (("hardware: h100", "hardware: h100, weights: int3"), "weights"),
        (("hardware: h100", "hardware: h100, decode_pp: 0"), "cluster.decode_pp"),
        (("hardware: h100", "hardwear: h100"), "hardwear"),
        (("cluster: {hardware: h100, slo: {ttft_ms: 500, tpot_ms: 50}}", ""), "cluster"),
    ],
)
def test_a_wrong_document_is_told_by_its_field(
    deployment: Path, change: tuple[str, str], message: str
) -> None:
    deployment.write_text(DOCUMENT.replace(*change))
    assert re.search(message, refused("sim", "run", "--deployment", deployment, "--trace", TRACE))


def test_layouts_that_cannot_exchange_kv_are_refused(deployment: Path) -> None:
    times = (
        "{{prefill_base_s: 0.01, prefill_token_s: 1.0e-4, decode_base_s: 0.01, decode_sequence_s: 1.0e-4, "
        "decode_context_s: 1.0e-7, kv_tokens: 10000, kv_token_bytes: {}}}"
    )
    both = f"prefill_times: {times.format(131072)}, decode_times: {times.format(65536)}, "
    deployment.write_text(DOCUMENT.replace("hardware: h100, ", both))
    assert "cannot exchange KV" in refused("sim", "run", "--deployment", deployment, "--trace", TRACE)


HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ("2023-11-16 18:15:46.6,374,44\n2023-11-16 18:15:45.0,10,5\n", "line 3.*before the one above"),
        ("2023-11-16 18:15:46.6,374,44\n2023-11-16 18:15:47.0,0,5\n", "line 3"),
        ("2023-11-16 18:15:46.6,374,44\n2023-11-16 18:15:47.0,12,0\n", "line 3"),
        ("2023-11-16 18:15:46.6,374,44\n2023-11-16 18:15:47.0,,7\n", "line 3"),
        ("2023-11-16 18:15:46.6,374,44\nnonsense,12,7\n", "line 3"),
        ("2023-11-16 18:15:46.6,9000000,44\n", "request 1: 9000000"),
        ("", "holds no request"),
    ],
)
def test_a_wrong_trace_is_told_by_its_row(deployment: Path, tmp_path: Path, rows: str, line: str) -> None:
    trace = tmp_path / "T.csv"
    trace.write_text(HEAD + rows)
    assert re.search(line, refused("sim", "run", "--deployment", deployment, "--trace", trace))


def test_times_before_zero_are_refused(deployment: Path, tmp_path: Path) -> None:
    trace = tmp_path / "T.jsonl"
    trace.write_text('{"timestamp": -5, "input_length": 10, "output_length": 5, "hash_ids": [1]}\n')
    assert "before time 0" in refused("sim", "run", "--deployment", deployment, "--trace", trace)


def test_long_requests_are_clipped_only_when_told(deployment: Path, tmp_path: Path) -> None:
    trace = tmp_path / "T.csv"
    trace.write_text(HEAD + "2023-11-16 18:15:46.6,374,44\n2023-11-16 18:15:47.0,9000000,44\n")
    answer = call("sim", "run", "--deployment", deployment, "--trace", trace, "--clip", "drop", "--json")
    assert (answer["requests"], answer["clipped"]) == (1, 1)


@pytest.mark.parametrize(
    "options", [("--rate", 0), ("--rate", "nan"), ("--jitter", -1), ("--faults", -1), ("--duration", 0)]
)
def test_options_that_make_no_sense(deployment: Path, options: tuple) -> None:
    name = options[0].removeprefix("--")
    assert name in refused("sim", "run", "--deployment", deployment, "--trace", TRACE, *options)


def test_distserve_filters_by_length_first_then_skips_and_cuts() -> None:
    base = ["sim", "distserve", "--trace", TRACE, "--max-total", 600, "--json"]
    assert call(*base)["requests"] < 40
    assert call(*base, "--skip", 2, "--num", 5)["requests"] == 5
    assert "rows of at most 600" in refused(*base, "--num", 40)
    assert "TP,PP" in refused(*base, "--prefill", "2")
    assert "opt-7b" in refused(*base, "--model", "opt-7b")
