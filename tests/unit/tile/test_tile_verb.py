"""`mortice tile` as a stranger types it."""

import json

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


def test_explain_and_emit_speak_of_lines_of_the_kernel():
    notes = json.loads(run.invoke(app, ["tile", "explain", "gemm", "--shape", "64,64,64", "--json"]).stdout)[
        "notes"
    ]
    assert all("gemm.py:" in note["place"] and note["source"] for note in notes)
    assert "int kernel(" in run.invoke(app, ["tile", "emit", "gemm", "--shape", "64,64,64"]).stdout


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
