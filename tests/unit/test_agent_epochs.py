"""Journal, sandbox and audit log of a run vouch for one another, and whatever is altered shows when it is resumed."""

from pathlib import Path

import msgspec
import pytest

from mortice.agent.durable_memory import Crash, MemoryDurable
from mortice.agent.epochs import Epoch, prove
from mortice.agent.home import home
from mortice.agent.logview import LogView
from mortice.agent.model import ScriptedCall, ScriptedTurn, ScriptSpec
from mortice.agent.policy import Policy
from mortice.agent.service import Agents
from mortice.agent.spec import AgentSpec
from mortice.cli.agent_output import Watch
from mortice.obs.audit import AuditLog
from mortice.obs.audit_verify import records, verify
from mortice.sandbox import MachineState
from mortice.specs.errors import WrongState

TOOLS = Path(__file__).parent.parent / "data" / "agent" / "tools.py"
SPEC = AgentSpec(
    task="add",
    tools=(f"{TOOLS}:add", f"{TOOLS}:charge"),
    policy=Policy(external="allow"),
    model=ScriptSpec(
        turns=(
            ScriptedTurn(call=ScriptedCall(tool="add", arguments={"a": 1, "b": 2})),
            ScriptedTurn(call=ScriptedCall(tool="charge", arguments={"amount": 3})),
            ScriptedTurn(call=ScriptedCall(tool="add", arguments={"a": 4, "b": 5})),
            ScriptedTurn(say="done"),
        )
    ),
)


@pytest.fixture
async def crashed(tmp_path, monkeypatch):
    """A run that died in its third turn, after its call and before that was written down."""
    monkeypatch.setenv("AGENT_TEST_LOG", str(tmp_path / "effects.log"))

    def crash(run, step, when):
        if (step, when) == ("call 2.0", "after"):
            raise Crash

    durable = MemoryDurable(crash)
    async with Agents(home(tmp_path / "home"), durable=durable) as agents:
        with pytest.raises(Crash):
            await agents.run(SPEC, "r")
        durable.crash_at = lambda *_: None
        yield agents


def chain_of(agents: Agents) -> Path:
    return agents.log.folder / f"{agents.log.chain}.jsonl"


def alter(agents: Agents, number: int, **fields) -> None:
    """Change a step of the journal."""
    journal = agents.durable._runs["r"].journal
    record = journal[number]
    output = record.output | fields
    journal[number] = msgspec.structs.replace(record, output=output)


async def test_what_was_not_altered_matches_and_goes_on(crashed):
    proof = await crashed.resume("r")
    assert (proof.turn, proof.altered, proof.absent) == (2, (), ())
    assert "match" in proof.said()
    assert (await crashed.result("r")).output == "done"
    kinds = [r["kind"] for r in records(crashed.log.folder, crashed.log.chain)]
    turn = ["model_call", "epoch", "model_answer", "tool_call", "tool_result"]
    assert sorted(kinds[:11]) == sorted(["run_begun", *turn, *turn])
    assert kinds.count("epoch") == 4
    assert kinds[-1] == "run_ended"
    assert "run_resumed" in kinds


@pytest.mark.parametrize(
    ("number", "fields", "text"),
    [
        (2, {"text": "4"}, "the journal is not what it was before turn 1"),
        (4, {"is_error": True}, "the journal is not what it was before turn 2"),
        (5, {"together": True}, "another outcome of the step 'think 2'"),
    ],
)
async def test_a_journal_that_was_altered_is_not_gone_on_with(crashed, number, fields, text):
    alter(crashed, number, **fields)
    with pytest.raises(WrongState, match=text):
        await crashed.resume("r")
    proof = await crashed.resume("r", unproven=True)
    assert proof.altered
    assert (await crashed.result("r")).output == "done"
    resumed = [r for r in records(crashed.log.folder, crashed.log.chain) if r["kind"] == "run_resumed"]
    assert text.split("'")[0].strip() in resumed[0]["proof"]["altered"][0]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda lines: [lines[0].replace(b'"add"', b'"ado"'), *lines[1:]], "does not follow"),
        (lambda lines: [*lines[:2], *lines[3:]], "does not follow"),
        (lambda lines: lines[:6], "cut off before record"),
        (lambda lines: [b"nothing", *lines[1:]], "is no record"),
    ],
)
async def test_an_audit_log_that_was_altered_is_told(crashed, damage, text):
    path = chain_of(crashed)
    path.write_bytes(b"\n".join(damage(path.read_bytes().splitlines())) + b"\n")
    with pytest.raises(WrongState, match=text):
        await crashed.resume("r")


async def test_a_sub_agents_journal_is_proven_with_its_parents(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_TEST_LOG", str(tmp_path / "effects.log"))

    def crash(run, step, when):
        if (run, step, when) == ("r.0.0", "call 2.0", "after"):
            raise Crash

    durable = MemoryDurable(crash)
    calls = (
        ScriptedTurn(call=ScriptedCall(tool="helper", arguments={"task": "add"})),
        ScriptedTurn(say="{{last}}"),
    )
    spec = AgentSpec(
        task="delegate", model=ScriptSpec(turns=calls), agents=(msgspec.structs.replace(SPEC, name="helper"),)
    )
    async with Agents(home(tmp_path / "home"), durable=durable) as agents:
        with pytest.raises(Crash):
            await agents.run(spec, "r")
        durable.crash_at = lambda *_: None
        proof = await agents.prove("r")
        assert (proof.altered, proof.agents) == ((), ("r.0.0",))
        assert "those of 1 sub-agent" in proof.said()
        journal = durable._runs["r.0.0"].journal
        before, output = journal[2], journal[2].output
        journal[2] = msgspec.structs.replace(before, output=output | {"text": "4"})
        with pytest.raises(
            WrongState, match=r"sub-agent r\.0\.0: the journal is not what it was before turn 1"
        ):
            await agents.resume("r")
        journal[2] = before
        assert (await agents.resume("r")).altered == ()
        assert (await agents.result("r")).output == "done"


async def test_an_audit_log_that_is_elsewhere_is_said_to_be(crashed):
    chain_of(crashed).rename(chain_of(crashed).with_suffix(".moved"))
    proof = await crashed.resume("r")
    assert (proof.altered, proof.absent) == ((), ("the audit log is not on this machine",))


async def test_what_reaches_the_world_is_in_the_log_before_it_begins(crashed, tmp_path):
    found = list(records(crashed.log.folder, crashed.log.chain))
    intent = next(r for r in found if r["kind"] == "tool_call" and r["tool"] == "charge")
    assert (intent["effect"], intent["arguments"], intent["approved"]) == (
        "write_external",
        {"amount": 3},
        False,
    )
    outcome = next(r for r in found if r.get("step") == "call 1.0")
    assert intent["seq"] < outcome["seq"]
    assert verify(crashed.log.folder).ok


def test_the_snapshot_and_the_sandboxs_log_are_part_of_it(tmp_path):
    with AuditLog(tmp_path / "boxes") as log:
        box = [log.append("cell", chain="b1", number=n).result() for n in range(5)]
    machine = MachineState(snapshot="s1", digest="d", chain="b1", seq=3, head=box[3][1])
    with AuditLog(tmp_path / "runs") as log:
        seq, head = log.append("epoch", chain="agents-1", run="r").result()
    epoch = Epoch(turn=0, journal="", machine=machine, chain="agents-1", seq=seq, head=head)

    def proven(machine_of, boxes_log=LogView(tmp_path / "boxes")):  # noqa: B008 - of this test alone
        step = type(
            "Step", (), {"name": "think 0", "output": {"epoch": msgspec.to_builtins(epoch)}, "error": None}
        )
        return prove("r", [step], LogView(tmp_path / "runs"), machine_of=machine_of, boxes_log=boxes_log)

    assert proven(lambda _: machine).altered == ()
    assert "snapshot s1 is gone" in proven(lambda _: None).absent
    other = msgspec.structs.replace(machine, digest="e")
    assert proven(lambda _: other).altered == ("snapshot s1 is another one now",)
    assert "the sandbox's audit log is not on this machine" in proven(lambda _: machine, None).absent
    path = tmp_path / "boxes" / "b1.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\n")
    assert proven(lambda _: machine).altered == ("audit log b1: it was cut off before record 3",)


async def test_consent_is_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_TEST_LOG", str(tmp_path / "effects.log"))
    watch = Watch("deny")
    place = home(tmp_path / "home")
    async with Agents(place, durable=MemoryDurable(), on_event=watch) as agents:
        watch.agents = agents
        spec = msgspec.structs.replace(SPEC, policy=Policy(external="ask"))
        assert (await agents.run(spec, "r")).state == "done"
        found = [r for r in records(agents.log.folder, agents.log.chain) if r["kind"].startswith("consent")]
    assert [r["kind"] for r in found] == ["consent_asked", "consent"]
    assert (found[1]["approve"], found[1]["by"], found[1]["digest"]) == (
        False,
        "terminal",
        found[0]["digest"],
    )
