"""The examples of agents, as a reader would run them."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from mortice.cli import main
from mortice.sandbox import Sandboxes

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples" / "agent"
MCP_PACKAGES = ROOT / "tests" / "protocol" / "mcp"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MORTICE_AGENT_HOME", str(tmp_path / "agents"))
    monkeypatch.setenv("SHOP", str(tmp_path / "shop.log"))
    return tmp_path


@pytest.fixture
def mortice(capsys, monkeypatch):
    """Runs a command in this process, and gives the JSON that it prints: its imports are paid for once."""

    def run(*args: str, code: int = 0) -> dict | list:
        monkeypatch.setattr(sys, "argv", ["mortice", *args, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == code, printed
        return json.loads(printed.out) if printed.out.strip() else {}

    return run


@pytest.fixture
def sandbox(mortice) -> None:
    if not sandbox_chosen():
        pytest.skip("no sandbox works here")


@cache
def sandbox_chosen() -> bool:
    async def ask() -> bool:
        async with Sandboxes() as boxes:
            return await boxes.strongest() is not None

    return asyncio.run(ask())


def test_data_analysis(home, sandbox, mortice):
    result = mortice(
        "agent", "run", "--script", str(EXAMPLES / "data_analysis.yaml"), "--out", str(home / "out")
    )
    assert result["state"] == "done"
    assert "162 %" in result["output"]
    assert "<polyline" in (home / "out" / "revenue.svg").read_text()
    shown = mortice("agent", "show", result["id"])
    calls = [call for turn in shown["turns"] for call in turn["calls"]]
    assert all(call["strength"] in ("gvisor", "microvm") for call in calls)
    assert "revenue.svg" in {name for call in calls for name in call["changed"]}
    logged = [record["kind"] for record in mortice("agent", "audit", "show", result["id"])]
    assert (logged[0], logged[-1], logged.count("tool_result")) == ("run_begun", "run_ended", len(calls))
    names = {box["name"] for box in mortice("sandbox", "ls")}
    assert f"agent-{result['id']}" not in names


@pytest.mark.slow
def test_crash_and_resume(home, sandbox):
    environment = os.environ | {"MORTICE": str(Path(sys.executable).parent / "mortice")}
    done = subprocess.run(
        ["bash", str(EXAMPLES / "crash_and_resume.sh")],
        capture_output=True, text=True, check=False, timeout=100, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    killed, result = done.stdout.splitlines()
    assert killed.startswith("killed process")
    assert json.loads(result)["output"] == "Counted to three, each number once."
    assert "journal, sandbox and audit log match" in done.stderr


def test_refund_with_consent(home, mortice):
    flow = "agent", "workflow"
    program = f"{EXAMPLES / 'refund.py'}:refund"
    given = json.dumps({"order": "A-7", "amount": 20})
    waiting = mortice(*flow, "run", program, "--input", given, "--id", "r1", "--stop-on-ask")
    assert (waiting["state"], waiting["ask"]["tool"]) == ("waiting", "pay the refund")
    assert mortice(*flow, "ls")[0]["state"] == "waiting"
    mortice(*flow, "approve", "r1")
    assert mortice(*flow, "resume", "r1")["output"] == {"receipt": "receipt-reservation-A-7"}
    lines = (home / "shop.log").read_text().splitlines()
    assert lines == ["looked up A-7"] * 2 + ["reserved 20 for A-7", "paid 20 from reservation-A-7"]


def test_refund_that_fails_is_undone(home, mortice):
    program = f"{EXAMPLES / 'refund.py'}:refund"
    given = json.dumps({"order": "A-8", "amount": 45})
    flow = "agent", "workflow"
    mortice(*flow, "run", program, "--input", given, "--id", "r2", "--stop-on-ask")
    mortice(*flow, "approve", "r2")
    result = mortice(*flow, "resume", "r2", code=1)
    assert "no more than 40" in result["reason"]
    assert (home / "shop.log").read_text().splitlines()[-1] == "released 45 of reservation-A-8"


@pytest.mark.slow  # installs packages; other tests meet servers that are real and servers that lie
def test_two_servers(home, tmp_path, mortice):
    if not shutil.which("npm") or not shutil.which("node") or not shutil.which("git"):
        pytest.skip("needs npm, node and git")
    try:
        import_module("mcp_server_git")
    except ImportError:
        pytest.skip("needs mcp-server-git")
    work = tmp_path / "work"
    (work / "notes").mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(MCP_PACKAGES / name, work)
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=work, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"the packages could not be had: {done.stderr.strip().splitlines()[-1]}")
    git = ["git", "-C", str(work / "repository")]
    subprocess.run(["git", "init", "-q", str(work / "repository")], check=True)
    author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    subprocess.run([*git, *author, "commit", "-q", "--allow-empty", "-m", "the last commit"], check=True)
    document = (EXAMPLES / "two_servers.yaml").read_text()
    document = document.replace("command: npx", "command: node").replace(
        '["-y", "@modelcontextprotocol/server-filesystem", ',
        '["./node_modules/@modelcontextprotocol/server-filesystem/dist/index.js", ',
    )
    document = document.replace(
        "command: mcp-server-git", f"command: {Path(sys.executable).parent / 'mcp-server-git'}"
    )
    (work / "agent.yaml").write_text(document)
    result = mortice("agent", "run", "--script", str(work / "agent.yaml"))
    assert result["state"] == "done"
    assert (work / "notes" / "last.txt").read_text() == "last commit: Ada"
    assert result["tainted"] is True
