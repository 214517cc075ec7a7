"""The page of a run in a real browser."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mortice.agent.history import File
from mortice.agent.record import Step, Timeline, Turn, TurnCall
from mortice.agent.timeline_page import page
from mortice.cli.serve_pages import pages
from mortice.serve.options import ServeOptions

TOOLS = Path(__file__).parent.parent / "data" / "agent" / "tools.py"

HOSTILE = "</pre><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def run() -> Timeline:
    plot = File(name="revenue.svg", media_type="image/svg+xml", size_bytes=470, uri="artifact://x")
    looked = TurnCall(
        tool="run_command",
        arguments={"command": "head -3 sales.csv"},
        state="done",
        observation=HOSTILE + "month,region,units,price " * 40,
        origin="sandbox",
        strength="gvisor",
        epoch="s9c1c2cc0e7e9",
        changed=("revenue.svg",),
        files=(plot,),
        seconds=0.4,
        sandbox_seconds=0.1,
    )
    failed = TurnCall(
        tool="run_python",
        arguments={"code": "1/0"},
        state="error",
        observation="ZeroDivisionError",
        seconds=0.1,
    )
    waits = TurnCall(
        tool="pay", arguments={"amount": 5, "to": HOSTILE}, state="waiting", observation="pay writes"
    )
    common = {"model": "m", "input_tokens": 100, "output_tokens": 20, "started_s": 1.8e9}
    return Timeline(
        id="r1",
        kind="agent",
        name=HOSTILE,
        task="Which region grew faster? " + HOSTILE,
        state="waiting",
        reason="",
        output="",
        error=None,
        created_s=1.8e9,
        updated_s=1.8e9 + 12,
        parent=None,
        branch_of=None,
        turns=(
            Turn(turn=0, thought="First I look. " + HOSTILE, seconds=2.0, calls=(looked,), **common),
            Turn(turn=1, thought="", seconds=1.0, calls=(failed, waits), notices=(HOSTILE,), **common),
        ),
        steps=(Step(name="charge", started_s=0.0, seconds=0.2, output={"a": HOSTILE}),),
    )


@pytest.fixture
def address(tmp_path) -> str:
    path = tmp_path / "run.html"
    path.write_text(page(run()))
    return path.as_uri()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (380, True)])
def test_the_page_shows_the_run_and_runs_nothing(open_browser, address, width, dark):
    with open_browser(width, 900, dark=dark) as driver:
        driver.get(address)
        assert "taken" not in driver.title.replace("document.title='taken'", "")
        assert driver.execute_script("return document.scripts.length") == 0
        assert driver.execute_script("return document.images.length") == 0
        text = driver.find_element("tag name", "body").text
        for words in (
            "waiting",
            "First I look.",
            "in gvisor",
            "snapshot",
            "revenue.svg 470 B",
            "charge",
            "ZeroDivisionError",
        ):
            assert words in text, words
        overflow = driver.execute_script("return document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0
        shares = [s.size["width"] for s in driver.find_elements("css selector", ".time .think")]
        assert shares[0] > shares[1]
        opened = [
            d.get_attribute("open") is not None for d in driver.find_elements("css selector", "details.call")
        ]
        assert opened == [True, True, True]
        ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(18, 20, 23)") == dark
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_bar_leads_to_its_turn(open_browser, address):
    with open_browser(1280, 400) as driver:
        driver.get(address)
        driver.find_elements("css selector", ".time a")[-2].click()
        assert driver.current_url.endswith("#turn-1")


def test_from_the_dashboard_to_a_run(open_browser, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("MORTICE_AGENT_HOME", str(tmp_path))
    turns = [
        {"say": "Looking.", "call": {"tool": "run_python", "arguments": {"code": "1"}}},
        {"say": "Found it."},
    ]
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"task": "Look for it.", "tools": [f"{TOOLS}:add"], "turns": turns}))
    command = [sys.executable, "-m", "mortice", "agent", "run", "--script", str(script), "--id", "look"]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    with serve(options=ServeOptions(pages=pages())) as server, open_browser(1280, 900) as driver:
        driver.implicitly_wait(20)
        driver.get(server.url)
        driver.find_element("link text", "Agents").click()
        driver.find_element("link text", "look").click()
        assert "Look for it." in driver.find_element("tag name", "header").text
        assert "Found it." in driver.find_element("class name", "output").text
        driver.find_element("link text", "all runs").click()
        assert driver.find_element("tag name", "h1").text == "Runs"
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
