"""Timing real operators of this machine, and what the command makes of them."""

import json
import subprocess
import sys

import pytest

from mortice.cost.calibration import calibrate
from mortice.cost.profile_table import FEATURES, read_profile
from mortice.ops.profile import Grid, measure
from mortice.specs.catalogue import load_hardware

TINY = Grid(
    rows=(1, 4),
    matrices=((64, 32),),
    heads=((4, 2, 16), (4, 1, 16)),
    batches=(1, 2),
    contexts=(16,),
    prompts=(8,),
    experts=((32, 16, 4, 2),),
    tokens=(1, 8),
    cache_bytes=1 << 16,
    max_bytes=1 << 24,
)


def test_every_operator_yields_rows_with_its_features():
    heard = []
    rows = measure("cpu", TINY, ("fp32",), lambda what, done: heard.append((what, done)))
    assert {row["operator"] for row in rows} == {"gemm", "decode_attention", "prefill_attention", "experts"}
    assert all(set(row["features"]) == set(FEATURES[row["operator"]]) for row in rows)
    assert all(row["seconds"] > 0 for row in rows)
    assert [done for _, done in heard] == list(range(1, len(rows) + 1))


def run(*arguments):
    command = [sys.executable, "-m", "mortice", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_profile_of_this_machine_calibrates_it(tmp_path):
    done = run("profile", "--out", str(tmp_path / "here"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] > 20
    hardware = load_hardware(str(tmp_path / "here" / "hardware.yaml"))
    tables = read_profile(tmp_path / "here" / "profile.json")
    assert calibrate(tables, hardware).covers
    scored = run(
        "calibrate",
        "--hardware",
        str(tmp_path / "here" / "hardware.yaml"),
        "--profile",
        str(tmp_path / "here" / "profile.json"),
        "--json",
    )
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["held_out"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["profile", "--out", "/no/such/folder/x"], "--out"),
        (["profile", "--out", "x", "--dtypes", "fp3"], "fp3"),
        (["profile", "--out", "x", "--dtypes", "fp8"], "cuda"),
        (["profile", "--out", "x", "--hardware", "h2000"], "h200"),
        (["calibrate", "--hardware", "h200"], "--profile"),
        (["calibrate", "--hardware", "h200", "--profile", "/no/such/file"], "/no/such/file"),
        (["calibrate", "--hardware", "h20", "--aiconfigurator", "vllm"], "h20"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, named):
    done = run(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert named in done.stderr
