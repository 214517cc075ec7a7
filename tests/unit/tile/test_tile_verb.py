"""`mortice tile` as a stranger types it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mortice.cli import app
from mortice.specs.errors import RequestError

run = CliRunner()


def test_list_names_every_kernel_with_its_arguments():
    rows = json.loads(run.invoke(app, ["tile", "list", "--json"]).stdout)["kernels"]
    gemm = next(row for row in rows if row["name"] == "gemm")
    assert gemm["arguments"] == ["A", "B"]
    assert gemm["shape"] == "M,N,K"


def test_check_says_what_was_compared():
    done = run.invoke(app, ["tile", "check", "permute", "--backend", "interpreter", "--seed", "3", "--json"])
    (row,) = json.loads(done.stdout)["checks"]
    assert (done.exit_code, row["status"], row["error"], row["tolerance"]) == (0, "ok", 0.0, 0)


ENDLESS = """
import sys
import torch
from mortice import tile
from mortice.cli import app
from mortice.ops.kernels.cases import CASES, Case, Trial

@tile.kernel
def endless(X: tile.Tensor):
    for b in tile.grid(1):
        while X[0] >= 0.0:
            X[1] = X[1] + 1.0

CASES["endless"] = Case(endless, lambda draw: Trial((torch.ones(2),), (), 0))
app(["tile", "check", "endless", "--backend", "c", "--seconds", "2", "--json"])
"""


def test_a_kernel_that_never_ends_ends_the_command(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    done = subprocess.run([sys.executable, tmp_path / "endless.py"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is False
    (last,) = document["checks"]
    assert (last["kernel"], last["status"], last["reason"]) == ("endless", "failed", "not done after 2 s")


def test_explain_and_emit_speak_of_lines_of_the_kernel():
    notes = json.loads(run.invoke(app, ["tile", "explain", "gemm", "--shape", "64,64,64", "--json"]).stdout)[
        "notes"
    ]
    assert all("gemm.py:" in note["place"] and note["source"] for note in notes)
    assert "int kernel(" in run.invoke(app, ["tile", "emit", "gemm", "--shape", "64,64,64"]).stdout


BACKWARD = ("attention_delta", "attention_backward", "attention_backward_keys", "attention_backward_queries")


@pytest.mark.parametrize("name", BACKWARD)
def test_emit_prints_the_backward_kernels_for_a_shape(name):
    words = ["tile", "emit", name, "--shape", "1,128,2,64", "--target"]
    assert "int kernel(" in run.invoke(app, [*words, "c"]).stdout
    assert "__global__" in run.invoke(app, [*words, "sm_90a"]).stdout


def emitted(target):
    """Of every kernel that `list` names."""
    names = [row["name"] for row in json.loads(run.invoke(app, ["tile", "list", "--json"]).stdout)["kernels"]]
    return {name: run.invoke(app, ["tile", "emit", name, "--target", target]) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "sign"),
    [("c", "int kernel("), ("sm_90a", "__global__"), ("sm_80", "__global__"), ("simulator", "launch(")],
)
def test_emit_prints_every_kernel_for_every_target_that_runs_it(target, sign):
    for name, done in emitted(target).items():
        assert done.exit_code == 0, f"{name}: {done.exception}"
        assert sign in done.stdout, name


def test_emit_prints_every_kernel_as_tile_ir():
    for name, done in emitted("interpreter").items():
        assert done.exit_code == 0, f"{name}: {done.exception}"
        assert done.stdout.startswith("def "), name


def test_explain_for_hopper_says_what_a_block_needs_and_what_bounds_it():
    words = ["tile", "explain", "gemm", "--shape", "4096,4096,4096", "--target", "sm_90a", "--json"]
    found = json.loads(run.invoke(app, words).stdout)
    assert found["prediction"]["bound_by"] == "compute"
    assert found["resources"][0]["stages"] == {"a": 4}
    assert any("TMA" in note["decision"] for note in found["notes"])


def test_tune_ranks_measures_and_replays(tmp_path):
    words = ["tile", "tune", "rms_norm", "--shape", "8,64", "--json"]
    ranked = json.loads(run.invoke(app, [*words, "--top", "0"]).stdout)
    assert ranked["from"] == "model"
    assert len(ranked["trials"]) == 5
    file = str(tmp_path / "schedules.json")
    measure = [*words, "--top", "1", "--rounds", "1", "--file", file, "--space", "rows=1,4"]
    first = json.loads(run.invoke(app, measure).stdout)
    assert first["from"] == "measurement"
    assert {trial["constants"]["rows"] for trial in first["trials"]} <= {1, 4}
    again = json.loads(run.invoke(app, [*words, "--file", file]).stdout)
    assert (again["from"], again["constants"]) == ("file", first["constants"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "nothing", "--shape", "1"], "there is no kernel nothing"),
        (["emit", "gemm", "--shape", "64,64"], "gemm wants M,N,K"),
        (["emit", "gemm", "--shape", "64,64,64", "--target", "vax"], "there is no target vax"),
        (["check", "gemm", "--backend", "vax"], "there is no target vax"),
        (["emit", "gemm", "--dtype", "f32"], "--dtype goes with --shape"),
        (["emit", "gemm", "--shape", "64,64,64", "--dtype", "i7"], "there is no element type i7"),
        (["explain", "gemm", "--shape", "64,64,64", "--target", "interpreter"], "the target is c or sm_90a"),
        (["tune", "gemm", "--shape", "64,64,64", "--space", "BM=many"], "names no whole numbers"),
        (["tune", "gemm", "--shape", "64,64,64", "--space", "BQ=1"], "no constant BQ"),
        (["tune", "permute", "--shape", "64"], "permute takes no shape"),
        (["tune", "gemm", "--shape", "64,64,64", "--clock", "sun"], "the clock is wall or thread"),
    ],
)
def test_a_wrong_request_is_one_line(words, message):
    error = run.invoke(app, ["tile", *words]).exception
    assert isinstance(error, RequestError)
    assert message in error.message
