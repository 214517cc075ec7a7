"""Power loss under the journal: whatever prefix of its last writes reached the disk, the run goes on and no effect comes
twice; and clocks that jump while a run is at work.
"""

import asyncio
import os
import random
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from mortice.agent.budget import Budget
from mortice.agent.home import home
from mortice.agent.model import ScriptedCall, ScriptedTurn, ScriptSpec
from mortice.agent.policy import Policy
from mortice.agent.service import Agents
from mortice.agent.spec import AgentSpec
from mortice.obs.audit_verify import verify

TOOLS = Path(__file__).parent.parent / "data" / "agent" / "tools.py"
AMOUNTS = range(4)


def spec() -> AgentSpec:
    charges = (
        ScriptedTurn(call=ScriptedCall(tool="charge", arguments={"amount": amount})) for amount in AMOUNTS
    )
    return AgentSpec(
        task="charge",
        tools=(f"{TOOLS}:charge", f"{TOOLS}:gate"),
        policy=Policy(external="allow"),
        model=ScriptSpec(
            turns=(*charges, ScriptedTurn(call=ScriptedCall(tool="gate")), ScriptedTurn(say="charged"))
        ),
    )


@pytest.fixture
async def stopped(tmp_path, monkeypatch):
    """A home as the machine had it while the run stood at the gate, all four effects done."""
    log, gate = tmp_path / "effects.log", tmp_path / "gate"
    monkeypatch.setenv("AGENT_TEST_LOG", str(log))
    monkeypatch.setenv("AGENT_TEST_GATE", str(gate))
    heard = []
    async with Agents(home(tmp_path / "home"), on_event=lambda run, event: heard.append(event)) as agents:
        await agents.start(spec(), "r")
        while len(await agents.durable.steps("r")) < 2 * len(AMOUNTS) + 1:
            await asyncio.sleep(0.01)
        shutil.copytree(tmp_path / "home", tmp_path / "frozen")
        gate.touch()
        await agents.result("r")
    assert log.read_text().split() == [str(amount) for amount in AMOUNTS]
    return tmp_path / "frozen"


async def test_any_prefix_of_the_journals_last_writes_recovers(stopped, tmp_path):
    log = tmp_path / "effects.log"
    whole = (stopped / "runs.db-wal").stat().st_size
    seed = int(os.environ.get("MORTICE_SEED", "11"))
    print(f"MORTICE_SEED={seed}")
    chance = random.Random(seed)
    seen = set()
    for cut in [0, whole, *(chance.randrange(whole) for _ in range(6))]:
        place = tmp_path / f"cut-{cut}"
        shutil.copytree(stopped, place)
        os.truncate(place / "runs.db-wal", cut)
        (place / "runs.db-shm").unlink()
        shutil.rmtree(place / "owners")  # the machine was started anew: nobody holds a lock
        async with Agents(home(place), takes_over=True) as agents:
            record = await agents.durable.find("r")
            if record is None:  # not even its beginning was written; the ledger was, before each act
                await agents.start(spec(), "r")
            else:
                seen.add(len(await agents.durable.steps("r")))
                proof = await agents.resume("r")
                assert proof is None or proof.altered == ()
            assert (await agents.result("r")).output == "charged"
            assert log.read_text().split() == [str(amount) for amount in AMOUNTS], cut
        assert verify(place / "audit").ok
    assert len(seen) >= 3, f"the cuts left journals of {seen} steps: too much alike to say anything"


async def test_what_the_journal_has_is_not_asked_of_the_ledger(stopped, tmp_path):
    log = tmp_path / "effects.log"
    with sqlite3.connect(stopped / "effects.db") as db:
        db.execute("delete from mortice_effects where turn = 3")
    db.close()
    shutil.rmtree(stopped / "owners")
    async with Agents(home(stopped), takes_over=True) as agents:
        await agents.resume("r")
        assert (await agents.result("r")).output == "charged"
    assert log.read_text().split() == [str(amount) for amount in AMOUNTS]


async def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """A day ahead, then an hour behind, between steps: budgets, ownership and the order of the log do not follow."""
    monkeypatch.setenv("AGENT_TEST_LOG", str(tmp_path / "effects.log"))
    real, real_ns, shift = time.time, time.time_ns, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(shift[0] * 1e9))
    jumps = iter([86400.0, -3600.0, 7.0, 0.0])

    def heard(run, event):
        if type(event).__name__ == "Answer":
            shift[0] = next(jumps)

    calls = (ScriptedTurn(call=ScriptedCall(tool="charge", arguments={"amount": n})) for n in range(3))
    made = AgentSpec(
        task="charge",
        tools=(f"{TOOLS}:charge",),
        policy=Policy(external="allow"),
        budget=Budget(seconds=60.0),
        model=ScriptSpec(turns=(*calls, ScriptedTurn(say="charged"))),
    )
    async with Agents(home(tmp_path / "home"), on_event=heard) as agents:
        result = await agents.run(made, "r")
        assert (result.state, result.output) == ("done", "charged")
        assert 0 <= result.spent.seconds < 60
        steps = await agents.durable.steps("r")
        proof = await agents.prove("r")
    found = [step.name for step in steps]
    assert max(s.started_s for s in steps) - min(s.started_s for s in steps) > 86000  # the clock did jump
    assert found == sorted(found, key=lambda name: (name.split()[1].split(".")[0], name.startswith("call")))
    assert (proof.turn, proof.altered, proof.absent) == (3, (), ())
    assert verify(tmp_path / "home" / "audit").ok
