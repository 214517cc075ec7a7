"""Journals of other versions: older ones are gone on with or refused in plain words, never misread or left to hang."""

import sqlite3
from pathlib import Path

import pytest

from mortice.agent import durable_dbos
from mortice.agent.dashboard import read_run
from mortice.agent.durable import Suspended
from mortice.agent.home import home
from mortice.agent.model import EndpointSpec, ScriptedCall, ScriptedTurn, ScriptSpec
from mortice.agent.service import Agents
from mortice.agent.spec import AgentSpec
from mortice.specs.errors import WrongState

DATA = Path(__file__).parent.parent / "data" / "agent"
TOOLS = DATA / "tools.py"


async def test_a_journal_from_before_there_were_epochs_is_gone_on_with(tmp_path, monkeypatch):
    """Written by an earlier release, killed in its second call; the database is as that release left it."""
    with sqlite3.connect(tmp_path / "runs.db") as db:
        db.executescript((DATA / "journal_1.sql").read_text().replace("@TOOLS@", str(TOOLS)))
    (tmp_path / "gate").touch()
    monkeypatch.setenv("AGENT_TEST_GATE", str(tmp_path / "gate"))
    assert [turn.sealed for turn in read_run(home(tmp_path), "old").turns] == ["", ""]
    async with Agents(home(tmp_path), takes_over=True) as agents:
        proof = await agents.resume("old")
        assert (proof.turn, proof.said()) == (None, "no epoch was sealed yet")
        result = await agents.result("old")
        names = [step.name for step in await agents.durable.steps("old")]
    assert (result.state, result.output, result.turns) == ("done", "It is open.", 3)
    assert names == ["think 0", "call 0.0", "think 1", "call 1.0", "think 2"]


async def test_a_run_of_another_version_of_the_steps_is_refused_and_can_be_branched(tmp_path, monkeypatch):
    call = ScriptedCall(tool="add", arguments={"a": 1, "b": 2})
    spec = AgentSpec(
        task="add", tools=(f"{TOOLS}:add",), model=EndpointSpec(base_url="http://127.0.0.1:1/v1", attempts=1)
    )
    script = ScriptSpec(turns=(ScriptedTurn(call=call), ScriptedTurn(say="three")))
    with monkeypatch.context() as patched:
        patched.setattr(durable_dbos, "VERSION", "mortice-agent-0")
        async with Agents(home(tmp_path)) as agents:
            await agents.start(spec, "waits")
            with pytest.raises(Suspended):
                await agents.result("waits")
            await agents.run(AgentSpec(task="add", tools=spec.tools, model=script), "ended")
    async with Agents(home(tmp_path), takes_over=True) as agents:
        with pytest.raises(WrongState, match=r"another version of its steps \(mortice-agent-0"):
            await agents.resume("waits")
        assert (await agents.result("ended")).output == "three"
        await agents.resume("ended")  # an end can be read by any version
        branched = await agents.branch("ended", 1, "replay")
        assert (await agents.result(branched)).output == "three"
