"""The runs of agents beside the dashboard: who sees them, and what a stranger's text can do there."""

import msgspec
import pytest

from mortice.agent.home import home
from mortice.agent.model import ScriptedCall, ScriptedTurn, ScriptSpec
from mortice.agent.service import Agents
from mortice.agent.spec import AgentSpec
from mortice.cli.serve_pages import pages
from mortice.serve.options import ServeOptions

HOSTILE = "<script>document.title='taken'</script>"


@pytest.fixture
async def runs(tmp_path, monkeypatch):
    """A store with one run that has ended."""
    monkeypatch.setenv("MORTICE_AGENT_HOME", str(tmp_path / "agents"))
    script = ScriptSpec(
        turns=(
            ScriptedTurn(
                say="First I look." + HOSTILE, call=ScriptedCall(tool="nothing", arguments={"a": HOSTILE})
            ),
            ScriptedTurn(say="done"),
        )
    )
    price = {"input": 1000.0, "output": 2000.0}
    spec = msgspec.convert({"task": f"Look. {HOSTILE}", "price": price}, AgentSpec)
    async with Agents(home()) as agents:
        result = await agents.run(msgspec.structs.replace(spec, model=script), "r1")
    assert result.state == "done"


async def test_the_list_leads_to_the_timeline(serve, runs):
    async with serve(options=ServeOptions(pages=pages())) as server:
        listed = await server.http.get("/agents")
        assert listed.status_code == 200
        assert 'href="agents/r1"' in listed.text
        shown = await server.http.get("/agents/r1")
        for words in (
            "First I look.",
            "tokens read",
            "there is no tool nothing",
            "sealed as audit record",
            "$0.",
        ):
            assert words in shown.text, words
        for answer in (listed, shown):
            assert answer.headers["content-type"].startswith("text/html")
            assert "script-src" not in answer.headers["content-security-policy"]
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "<script" not in answer.text
            assert 'http-equiv="refresh"' not in answer.text
        missing = await server.http.get("/agents/r2")
        assert missing.status_code == 404
        assert "r2" in missing.json()["error"]["message"]


async def test_they_are_shown_to_those_who_may_use_the_admin_routes(serve, runs):
    async with serve(options=ServeOptions(pages=pages(), admin_token="t0k3n")) as server:
        for path in ("/agents", "/agents/r1"):
            assert (await server.http.get(path)).status_code == 401
            allowed = await server.http.get(path, headers={"authorization": "Bearer t0k3n"})
            assert allowed.status_code == 200
    async with serve(options=ServeOptions(pages=pages())) as server:
        elsewhere = await server.http.get("/agents", headers={"host": "evil.example.org"})
        assert elsewhere.status_code == 403


async def test_a_home_without_runs_says_so(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("MORTICE_AGENT_HOME", str(tmp_path / "nowhere"))
    async with serve(options=ServeOptions(pages=pages())) as server:
        assert "Nothing has been run yet" in (await server.http.get("/agents")).text
    assert not (tmp_path / "nowhere").exists()


async def test_without_pages_there_is_no_such_route(server):
    assert (await server.http.get("/agents")).status_code == 404
