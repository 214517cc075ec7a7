"""Whole runs on the store in memory: what an agent does turn by turn, and that a crash anywhere changes nothing."""

import asyncio
import contextlib
import itertools
import json
from pathlib import Path

import msgspec
import pytest

from mortice.agent.act import Ask
from mortice.agent.budget import Budget
from mortice.agent.durable import Cancelled, RunFailed
from mortice.agent.durable_memory import Crash, MemoryDurable
from mortice.agent.history import Answer, Compaction, Notice, Observation
from mortice.agent.home import home
from mortice.agent.model import ScriptedCall, ScriptedTurn, ScriptSpec
from mortice.agent.policy import Policy
from mortice.agent.service import Agents
from mortice.agent.spec import AgentSpec

TOOLS = Path(__file__).parent.parent / "data" / "agent" / "tools.py"


def tool(name: str) -> str:
    return f"{TOOLS}:{name}"


def says(*turns, **fields) -> AgentSpec:
    """A scripted agent. A turn is a text, or `(tool, arguments)`, or a list of those."""
    made = []
    for turn in turns:
        if isinstance(turn, str):
            made.append(ScriptedTurn(say=turn))
        else:
            calls = turn if isinstance(turn, list) else [turn]
            made.append(ScriptedTurn(calls=tuple(ScriptedCall(tool=t, arguments=a) for t, a in calls)))
    fields.setdefault(
        "tools", tuple(tool(n) for n in ("add", "look", "fail", "charge", "charge_keyed", "flood", "slow"))
    )
    return AgentSpec(task="the task", model=ScriptSpec(turns=tuple(made)), **fields)


class Rig:
    def __init__(self, tmp_path: Path) -> None:
        self.events: list = []
        self.asked: list[Ask] = []
        self.durable = MemoryDurable()
        self.agents = Agents(home(tmp_path / "home"), durable=self.durable, on_event=self._hear)

    def _hear(self, run_id, event) -> None:
        (self.asked if isinstance(event, Ask) else self.events).append(event)

    def seen(self) -> list[Observation]:
        return [e for e in self.events if isinstance(e, Observation)]

    async def answer(self, run_id: str, *, approve: bool, **fields) -> None:
        while not self.asked:
            await asyncio.sleep(0.001)
        ask = self.asked.pop(0)
        step = [s for s in await self.durable.steps(run_id) if s.name.startswith("ask ")]
        while not step:
            await asyncio.sleep(0.001)
            step = [s for s in await self.durable.steps(run_id) if s.name.startswith("ask ")]
        message = {"approve": approve, "digest": ask.digest} | fields
        await self.durable.send(run_id, f"approve {step[-1].name.removeprefix('ask ')}", message)


@pytest.fixture
async def rig(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_TEST_LOG", str(tmp_path / "effects.log"))
    made = Rig(tmp_path)
    made.log = tmp_path / "effects.log"
    async with made.agents:
        yield made


def effects(rig) -> list[str]:
    return rig.log.read_text().splitlines() if rig.log.exists() else []


async def test_think_act_observe(rig):
    result = await rig.agents.run(says(("add", {"a": 2, "b": 40}), "It is 42."), "r")
    assert (result.state, result.output, result.turns) == ("done", "It is 42.", 2)
    assert [o.text for o in rig.seen()] == ["42"]
    assert result.spent.calls == 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (("nothing", {}), "there is no tool nothing"),
        (("add", {"a": "x", "b": 1}), "the arguments are wrong: a:"),
        (("add", {"a": 1}), "required"),
        (("fail", {}), "ValueError: it broke"),
    ],
)
async def test_errors_are_observations(rig, call, text):
    result = await rig.agents.run(says(call, "I see."), "r")
    assert result.state == "done"
    assert rig.seen()[0].is_error
    assert text in rig.seen()[0].text


async def test_a_tool_that_takes_too_long_is_stopped(rig):
    result = await rig.agents.run(says(("slow", {"seconds": 30}), "on", budget=Budget(seconds=0.2)), "r")
    assert "did not end within" in rig.seen()[0].text
    assert result.state == "stopped"
    assert result.reason.startswith("budget used up: seconds")


async def test_long_results_are_cut_and_kept_whole(rig):
    spec = says(("flood", {"count": 5000}), "ok", policy=Policy(max_output_chars=100))
    result = await rig.agents.run(spec, "r")
    assert "characters omitted" in rig.seen()[0].text
    assert rig.agents.artifacts.get(result.files[0].uri) == b"x" * 5000


async def test_turns_end(rig):
    turns = [("add", {"a": n, "b": n}) for n in range(9)]
    result = await rig.agents.run(says(*turns, budget=Budget(turns=3)), "r")
    assert (result.state, result.turns) == ("stopped", 3)
    assert result.reason == "budget used up: turns: 3 of 3"


async def test_loops_end(rig):
    result = await rig.agents.run(says(*[("add", {"a": 1, "b": 1})] * 9), "r")
    assert "5 times with the same arguments" in result.reason
    assert sum(isinstance(e, Notice) for e in rig.events) == 2


async def test_silence_ends(rig):
    result = await rig.agents.run(says("", "", "never said"), "r")
    assert result.reason == "the model gave nothing, twice"


async def test_readers_run_together(rig):
    spec = says([("look", {"name": "a"}), ("look", {"name": "b"})], "both")
    await rig.agents.run(spec, "r")
    assert [o.text for o in rig.seen()] == ["a of 2", "b of 2"]


async def test_writers_run_one_by_one(rig):
    await rig.agents.run(says([("charge", {"amount": 1}), ("charge", {"amount": 2})], "done"), "r")
    assert effects(rig) == ["1", "2"]


async def test_history_is_compacted_and_the_run_goes_on(rig):
    turns = [("flood", {"count": 300 + n}) for n in range(8)]
    result = await rig.agents.run(says(*turns, "end", compact_above_chars=1500), "r")
    compactions = [e for e in rig.events if isinstance(e, Compaction)]
    assert result.output == "end"
    assert compactions
    assert all(c.summary for c in compactions)


async def test_sub_agents_are_runs_of_their_own(rig):
    helper = says(("add", {"a": 1, "b": 2}), "the sum is 3", name="helper")
    spec = says(
        [("helper", {"task": "add"}), ("helper", {"task": "again"})], "both say 3", tools=(), agents=(helper,)
    )
    result = await rig.agents.run(spec, "r")
    assert result.output == "both say 3"
    children = [e for e in rig.seen() if e.tool == "helper"]
    assert [c.text for c in children] == ["the sum is 3"] * 2
    assert (await rig.durable.find("r.0.1")).parent == "r"
    assert result.spent.tokens > sum(c.tokens for c in children) > 0


async def test_agents_are_not_nested_without_end(rig):
    def nest(depth: int) -> AgentSpec:
        if depth == 0:
            return says("bottom", name="inner", tools=())
        return says(("inner", {"task": "t"}), "{{last}}", name="inner", tools=(), agents=(nest(depth - 1),))

    result = await rig.agents.run(nest(5), "r")
    assert "nested 3 deep" in result.output


async def test_consent_is_to_the_exact_call(rig):
    spec = says(("charge", {"amount": 5}), "paid", policy=Policy(external="ask"))
    await rig.agents.start(spec, "r")
    await rig.answer("r", approve=True)
    assert (await rig.agents.result("r")).output == "paid"
    assert effects(rig) == ["5"]


@pytest.mark.parametrize(
    "fields", [{"approve": False, "reason": "too much"}, {"approve": True, "digest": "another"}]
)
async def test_without_consent_nothing_happens(rig, fields):
    spec = says(("charge", {"amount": 5}), "not paid", policy=Policy(external="ask"))
    await rig.agents.start(spec, "r")
    await rig.answer("r", **fields)
    await rig.agents.result("r")
    assert effects(rig) == []
    assert rig.seen()[0].text in ("too much", "the consent was for another call")


async def test_nobody_answers(rig):
    spec = says(("charge", {"amount": 5}), "no", policy=Policy(external="ask", approval_timeout_s=0.05))
    await rig.agents.run(spec, "r")
    assert rig.seen()[0].text == "nobody answered in time"
    assert effects(rig) == []


async def test_a_run_that_is_cancelled_ends_at_its_next_step(rig, tmp_path, monkeypatch):
    gate = tmp_path / "gate"
    monkeypatch.setenv("AGENT_TEST_GATE", str(gate))
    spec = says(("gate", {}), ("charge", {"amount": 1}), "end", tools=(tool("gate"), tool("charge")))
    await rig.agents.start(spec, "r")
    while not any(isinstance(event, Answer) for event in rig.events):
        await asyncio.sleep(0.001)
    await rig.durable.cancel("r")
    gate.touch()
    with pytest.raises(Cancelled):
        await rig.agents.result("r")
    assert effects(rig) == []


async def test_a_script_that_expects_what_is_not_there_fails(rig):
    turns = (
        ScriptedTurn(call=ScriptedCall(tool="add", arguments={"a": 1, "b": 1})),
        ScriptedTurn(say="x", expect="3"),
    )
    spec = msgspec.structs.replace(says(), model=ScriptSpec(turns=turns))
    with pytest.raises(RunFailed, match="expects '3'"):
        await rig.agents.run(spec, "r")


# A crash at every step.

EVERYTHING = [
    [("look", {"name": "a"}), ("look", {"name": "b"})],
    ("charge_keyed", {"amount": 1}),
    ("helper", {"task": "charge"}),
    ("flood", {"count": 400}),
    ("charge_keyed", {"amount": 2}),
]


def everything() -> AgentSpec:
    helper = says(("charge_keyed", {"amount": 7}), "charged", name="helper")
    return says(
        *EVERYTHING, "the end", agents=(helper,), compact_above_chars=500, policy=Policy(external="allow")
    )


async def number_of_boundaries(rig) -> int:
    count = itertools.count()
    rig.durable.crash_at = lambda run, step, when: next(count)
    await rig.agents.run(everything(), "first")
    return next(count)


async def test_a_crash_at_any_step_loses_nothing_and_does_nothing_twice(rig):
    boundaries = await number_of_boundaries(rig)
    assert boundaries > 20
    for place in range(boundaries):
        rig.log.unlink(missing_ok=True)
        count, run_id = itertools.count(), f"r{place}"

        def crash(run, step, when, place=place, count=count):
            if next(count) == place:
                raise Crash(f"{when} {step}")

        rig.durable.crash_at = crash
        with pytest.raises(Crash):
            await rig.agents.run(everything(), run_id)
        for task in [r.task for name, r in rig.durable._runs.items() if name.startswith(run_id)]:
            with contextlib.suppress(Crash, asyncio.CancelledError):
                task.cancel()
                await task
        await rig.agents.resume(run_id)
        result = await rig.agents.result(run_id)
        assert result.output == "the end"
        # A call in flight is sent again under its key; whoever has seen the key does not do it again.
        keys = dict(line.split(" ") for line in rig.log.read_text().splitlines())
        assert sorted(keys.values()) == ["1", "2", "7"], place
        journal = [s.name for s in await rig.durable.steps(run_id)]
        assert len(journal) == len(set(journal)), place


async def test_what_is_not_idempotent_is_not_done_again_without_a_human(rig, monkeypatch):
    def die(key, result):
        raise Crash("between the act and its result")

    with monkeypatch.context() as patched:
        patched.setattr(rig.agents.ledger, "finish", die)
        with pytest.raises(Crash):
            await rig.agents.run(says(("charge", {"amount": 5}), "end", policy=Policy(external="allow")), "r")
    assert effects(rig) == ["5"]
    await rig.agents.resume("r")
    await rig.answer("r", approve=False, reason="it went through")
    assert (await rig.agents.result("r")).output == "end"
    assert effects(rig) == ["5"]
    assert rig.seen()[-1].text == "it went through"


async def test_what_was_journaled_by_the_ledger_alone_is_replayed(rig):
    def crash(run, step, when):
        if (step, when) == ("call 0.0", "after"):
            raise Crash

    rig.durable.crash_at = crash
    with pytest.raises(Crash):
        await rig.agents.run(says(("charge", {"amount": 5}), "end", policy=Policy(external="allow")), "r")
    rig.durable.crash_at = lambda *_: None
    await rig.agents.resume("r")
    assert (await rig.agents.result("r")).output == "end"
    assert effects(rig) == ["5"]
    assert rig.seen()[-1].replayed


async def test_a_branch_replays_what_was_done(rig):
    spec = says(("charge", {"amount": 5}), ("charge", {"amount": 6}), "end", policy=Policy(external="allow"))
    await rig.agents.run(spec, "r")
    new = await rig.agents.branch("r", 1, "replay")
    result = await rig.agents.result(new)
    assert new == "r~1"
    assert result.output == "end"
    assert effects(rig) == ["5", "6"]
    assert [o.replayed for o in rig.seen()[-2:]] == [False, True]
    assert any("already happened" in e.text for e in rig.events if isinstance(e, Notice))
    anew = await rig.agents.branch("r", 1, "anew")
    await rig.agents.result(anew)
    assert effects(rig) == ["5", "6", "6"]


async def test_the_journal_is_json(rig):
    await rig.agents.run(everything(), "r")
    for step in await rig.durable.steps("r"):
        json.dumps(step.output)
