"""Workflows with sandboxes on the store in memory: variables and files outlive a crash anywhere, and epochs hold."""

import contextlib
import itertools
from pathlib import Path

import msgspec
import pytest

from mortice.agent.durable_memory import Crash, MemoryDurable
from mortice.agent.home import home
from mortice.agent.service import Agents
from mortice.sandbox import Sandboxes
from mortice.specs.errors import WrongState

PROGRAM = """
import asyncio
from mortice.agent.durable import StepFailed

def twice(n):
    return 2 * n

async def count(flow, given):
    box = flow.sandbox()
    first = await box.run_python(f"total = {given}; open('/work/log', 'a').write('x'); total")
    n, m = await flow.together((twice, int(first.text)), (twice, 4))
    told = await box.run_python(f"total += {n + m}; open('/work/log', 'a').write('x'); total")
    await box.write_file("note", "kept")
    bad = await box.run_command("exit 3")
    try:
        await box.read_file("nothing")
    except StepFailed as error:
        missing = error.kind
    await flow.step(twice, 1)
    log = await box.read_file("log")
    return {"total": told.text, "log": log, "note": await box.read_file("note"), "bad": bad.ok, "missing": missing}
"""
WANTED = {"total": "26", "log": "xx", "note": "kept", "bad": False, "missing": "ToolError"}


@pytest.fixture
async def agents(tmp_path, own_boxes):
    @contextlib.asynccontextmanager
    async def opened():
        yield own_boxes

    durable = MemoryDurable()
    async with Agents(home(tmp_path / "home"), durable=durable, open_boxes=opened) as made:
        yield made


def payload(tmp_path: Path) -> dict:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return {"workflow": f"{path}:count", "input": 6}


async def crashed(agents: Agents, boxes: Sandboxes, tmp_path: Path, run_id: str, crash) -> None:
    """As another process finds it: machines are there, and nobody owns them."""
    agents.durable.crash_at = crash
    await agents.start_workflow(payload(tmp_path), run_id)
    with pytest.raises(Crash):
        await agents.durable.result(run_id)
    agents.durable.crash_at = lambda *_: None
    for info in boxes.list():
        await boxes._mine[info.id].close()


def at(place: int):
    count = itertools.count()

    def crash(run, step, when):
        if next(count) == place:
            raise Crash(f"{when} {step}")

    return crash


async def test_its_sandbox_lives_as_long_as_it_does(agents, own_boxes, tmp_path):
    await agents.start_workflow(payload(tmp_path), "w")
    result = await agents.durable.result("w")
    assert result == {"state": "done", "output": WANTED}
    assert own_boxes.list() == []
    proof = await agents.prove("w")
    assert (proof.turn, proof.altered, proof.absent) == (5, (), ())
    assert "before use of a sandbox 5: journal, sandbox and audit log match" in proof.said()


@pytest.mark.parametrize("lost", [False, True], ids=["alive", "lost"])
@pytest.mark.parametrize("place", [3, 9])
async def test_a_crash_loses_nothing_and_does_nothing_twice(agents, own_boxes, tmp_path, place, lost):
    """In the middle of a use of the sandbox, which lives on or is lost with the process."""
    await crashed(agents, own_boxes, tmp_path, "w", at(place))
    if lost:
        for info in own_boxes.list():
            await own_boxes.destroy(info.name)
    proof = await agents.resume("w")
    assert (proof.altered, proof.absent) == ((), ())
    assert (await agents.durable.result("w"))["output"] == WANTED
    assert own_boxes.list() == []


async def test_a_journal_that_was_altered_is_not_gone_on_with(agents, own_boxes, tmp_path):
    await crashed(agents, own_boxes, tmp_path, "w", at(13))
    journal = agents.durable._runs["w"].journal
    number, before = next((n, step) for n, step in journal.items() if step.name == "twice")
    journal[number] = msgspec.structs.replace(before, output=13)
    with pytest.raises(WrongState, match="the journal is not what it was before use 1 of a sandbox"):
        await agents.resume("w")
    journal[number] = before
    assert (await agents.resume("w")).altered == ()
    assert (await agents.durable.result("w"))["output"] == WANTED
