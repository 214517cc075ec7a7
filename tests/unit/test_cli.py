"""The command line from outside: verbs, exit codes, one line a mistake."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mortice.cli.verbs import VERBS, load


def mortice(*args: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"MORTICE_HOME": str(home)} if home else {})
    command = [sys.executable, "-m", "mortice", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


@pytest.mark.parametrize("name", VERBS)
def test_the_list_says_what_the_verb_says_of_itself(name: str) -> None:
    assert load(name).help.split("\n\n")[0] == VERBS[name]


def test_help_and_completion_import_no_verb() -> None:
    shown = mortice("--help")
    assert shown.returncode == 0
    assert all(f" {name} " in shown.stdout for name in VERBS)
    program = (
        "import runpy, sys\n"
        "sys.argv = ['mortice', '--help']\n"
        "try: runpy.run_module('mortice', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('numpy', 'starlette', 'mortice')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    allowed = {"mortice", "mortice.__main__", "mortice.cli", "mortice.cli.verbs"}
    assert loaded <= allowed | {"mortice.specs", "mortice.specs.errors"}


@pytest.mark.parametrize(
    ("words", "found"),
    [("s", ["serve", "sim", "sandbox"]), ("sandbox f", ["fork"]), ("agent resume --appr", ["--approve"])],
)
def test_words_are_completed(words: str, found: list[str]) -> None:
    typed = f"mortice {words}"
    asked = {"_MORTICE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words.split()))}
    done = subprocess.run(
        [Path(sys.executable).parent / "mortice"],
        capture_output=True, text=True, check=False, timeout=60, env=os.environ | asked,
    )  # fmt: skip
    assert done.stdout.split() == found


def test_a_verb_that_is_none_gets_a_hint() -> None:
    done = mortice("serv")
    assert done.returncode == 2
    assert "Did you mean 'serve'" in done.stderr


@pytest.mark.parametrize("verb", ["bench", "chat", "doctor", "pull", "serve"])
def test_every_verb_explains_itself(verb: str) -> None:
    shown = mortice(verb, "--help")
    assert shown.returncode == 0
    assert "Usage" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["serve", "--model", "/no/such/model"], "/no/such/model"),
        (["serve", "--prefill", "-1"], "prefill"),
        (["serve", "--decode", "0"], "decode"),
        (["serve", "--dtype", "int3"], "dtype"),
        (["serve", "--quantize", "int2"], "quantize"),
        (["serve", "--dtype", "int3"], "float32, bfloat16, float16"),
        (["serve", "--quantize", "int2"], "none, int8, int4, keep"),
        (["serve", "--device", "tpu"], "auto, cpu, cuda"),
        (["serve", "--speculate", "luck"], "ngram, draft"),
        (["serve", "--transport", "rdma"], "auto, shm, tcp, nixl"),
        (["serve", "--transfer", "both"], "pull, push"),
        (["serve", "--checksum", "md5"], "full, sampled, off"),
        (["serve", "--log-level", "loud"], "debug, info, warning or error"),
        (["serve", "--block-size", "7"], "block_size"),
        (["serve", "--token-budget", "1"], "token_budget"),
        (["serve", "--speculate", "draft"], "draft_model"),
        (["serve", "--adapter", "name"], "adapter"),
        (["serve", "--deployment", "/no/such.yaml"], "/no/such.yaml"),
        (["serve", "--log-level", "loud"], "log_level"),
        (["pull", "no-such-model"], "no-such-model"),
        (["bench", "--concurrency", "0"], "concurrency"),
    ],
)
def test_a_wrong_request_is_one_line_and_code_2(arguments: list[str], named: str, tmp_path: Path) -> None:
    done = mortice(*arguments, home=tmp_path)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_broken_models_are_one_line_and_code_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    for path in ("empty", "bad.gguf", "folder"):
        done = mortice("serve", "--model", str(tmp_path / path), "--port", "0", "--log-level", "error")
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_port_in_use_is_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    import socket

    (tmp_path / "model").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = mortice("serve", "--model", str(tmp_path / "model"), "--port", str(port))
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert "use" in done.stderr


def test_doctor_reports_as_json() -> None:
    done = mortice("doctor", "--json")
    report = json.loads(done.stdout)
    names = {check["name"] for check in report["checks"]}
    assert {"python", "torch", "cpu", "memory", "shared memory", "default model"} <= names
    assert done.returncode == (0 if report["ok"] else 1)


@pytest.mark.slow
def test_doctor_s_table_keeps_the_extras_in_brackets() -> None:
    said = "".join(mortice("doctor").stdout.split())
    assert "sandbox:gvisor" in said
    assert "'mortice'" not in said
