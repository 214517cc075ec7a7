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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "nothing", "--shape", "1"], "there is no kernel nothing"),
        (["emit", "gemm", "--shape", "64,64"], "gemm wants M,N,K"),
        (["emit", "gemm", "--shape", "64,64,64", "--target", "vax"], "there is no target vax"),
        (["check", "gemm", "--backend", "vax"], "there is no target vax"),
        (["emit", "gemm", "--shape", "64,64,64", "--dtype", "i7"], "there is no element type i7"),
    ],
)
def test_a_wrong_request_is_one_line(words, message):
    error = run.invoke(app, ["tile", *words]).exception
    assert isinstance(error, RequestError)
    assert message in error.message
