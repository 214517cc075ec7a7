"""What may be removed of what was saved: nothing that a sandbox, an epoch or a journal still needs."""

import json
import sqlite3
import sys
import time
from pathlib import Path

import msgspec
import pytest

from mortice.agent.durable import RunRecord, StepRecord
from mortice.agent.home import Home as AgentHome
from mortice.agent.machine import box_name
from mortice.agent.retention import ended, snapshots_of
from mortice.agent.retention import tidy as tidy_runs
from mortice.cli import main
from mortice.sandbox import Epoch, Sandboxes, SandboxSpec
from mortice.sandbox.home import digest_of, write_once
from mortice.sandbox.record import BoxRecord
from mortice.sandbox.retention import DAY_S, Rules, read_rules, write_rules
from mortice.specs.errors import RequestError, WrongState

HUNDRED_S = Rules(keep_days=100.0 / DAY_S)


@pytest.fixture
async def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MORTICE_SANDBOX_HOME", str(tmp_path / "home"))
    async with Sandboxes() as found:
        yield found


def saved(boxes: Sandboxes, name: str, *, age_s: float = 1000.0) -> str:
    """A snapshot of that age, as far as the books go."""
    snapshot_id = boxes.snapshots.begin()
    folder = boxes.snapshots.machine_folder(snapshot_id, published=False)
    folder.mkdir()
    (folder / "pages.img").write_bytes(b"memory" * 100)
    manifest = boxes.snapshots.publish(
        snapshot_id, cached=False, box="b0", name=name, parent=None, epoch=None, backend="gvisor", backend_version="v",
        image_digest="i", agent_digest="a", spec=SandboxSpec(), audit_chain="b0", audit_seq=0, audit_head="h",
    )  # fmt: skip
    older = msgspec.structs.replace(manifest, created_at=time.time() - age_s)
    older = msgspec.structs.replace(older, digest=digest_of(older))
    (boxes.home.snapshots / snapshot_id / "MANIFEST").write_bytes(msgspec.json.encode(older))
    return snapshot_id


def refer(boxes: Sandboxes, snapshot: str) -> None:
    """A sandbox that came from it."""
    place = boxes.home.box("b1")
    place.mkdir()
    record = BoxRecord(
        id="b1", name="box", backend="gvisor", strength="gvisor", state="ready", spec=SandboxSpec(), generation=1,
        created_at=0.0, parent_snapshot=snapshot, keep=True,
    )  # fmt: skip
    (place / "box.json").write_bytes(msgspec.json.encode(record))


def commit(boxes: Sandboxes, snapshot: str) -> None:
    epoch = Epoch(
        run="r", number=4, journal={}, box="b0", snapshot=snapshot, audit_chain="b0", audit_seq=1, audit_head="h",
        num_effects=0, created_at=0.0,
    )  # fmt: skip
    folder = boxes.home.runs / "r" / "epochs"
    folder.mkdir(parents=True)
    write_once(folder / "00000004.json", msgspec.structs.replace(epoch, digest=digest_of(epoch)))


async def test_only_what_is_old_and_needed_by_nobody_goes(boxes: Sandboxes) -> None:
    old, young = saved(boxes, "box"), saved(boxes, "box", age_s=10.0)
    parent, epoch, agents = saved(boxes, "box"), saved(boxes, "box"), saved(boxes, box_name("run-1"))
    refer(boxes, parent)
    commit(boxes, epoch)
    assert boxes.retention.referred() == {parent: "sandbox box", epoch: "epoch 4 of run r"}
    assert [m.id for m in boxes.retention.prune(HUNDRED_S, dry_run=True)] == [old]
    assert [m.id for m in boxes.retention.prune(HUNDRED_S)] == [old]
    assert {m.id for m in boxes.snapshots.list()} == {young, parent, epoch, agents}
    with pytest.raises(WrongState, match="sandbox box refers to snapshot"):
        boxes.retention.remove(parent)
    boxes.retention.remove(parent, force=True)
    assert parent not in {m.id for m in boxes.snapshots.list()}


async def test_what_a_living_process_uses_stays(boxes: Sandboxes) -> None:
    template = saved(boxes, "template")
    with boxes.snapshots.held(template), boxes.snapshots.held(template):
        assert boxes.retention.prune(Rules(keep_days=0.0)) == []
        with pytest.raises(WrongState, match="a pool of a living process refers"):
            boxes.retention.remove(template)
    assert [m.id for m in boxes.retention.prune(Rules(keep_days=0.0))] == [template]


async def test_the_oldest_go_while_there_is_too_much_that_nobody_needs(boxes: Sandboxes) -> None:
    kept = saved(boxes, "box", age_s=5000.0)
    refer(boxes, kept)
    oldest, older, young = (saved(boxes, "box", age_s=age) for age in (300.0, 200.0, 100.0))
    size = boxes.snapshots.disk_bytes(boxes.snapshots.manifest(young))
    assert size >= 600
    bound = Rules(keep_days=None, keep_bytes=size)
    assert [m.id for m in boxes.retention.prune(bound, dry_run=True)] == [oldest, older]
    assert [m.id for m in boxes.retention.prune(bound, at_most=1)] == [oldest]
    assert [m.id for m in boxes.retention.prune(bound)] == [older]
    assert boxes.retention.prune(bound) == []
    assert {m.id for m in boxes.snapshots.list()} == {kept, young}


async def test_the_home_s_rules_are_kept_to_beside_other_work(boxes: Sandboxes) -> None:
    old, young = saved(boxes, "box", age_s=3 * DAY_S), saved(boxes, "box")
    write_rules(boxes.home, Rules(keep_days=2.0))
    assert boxes.retention.is_due
    boxes.retention.tidy()
    assert [m.id for m in boxes.snapshots.list()] == [young]
    assert not boxes.retention.is_due
    (boxes.home.root / "retention.json").write_text('{"keep_days": "long"}')
    boxes.retention.tidy()  # it fails by itself
    with pytest.raises(RequestError, match="snapshots keep"):
        read_rules(boxes.home)
    assert old not in {m.id for m in boxes.snapshots.list()}


def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["mortice", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out + said.err


def test_the_verbs_list_remove_and_prune(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORTICE_SANDBOX_HOME", str(tmp_path / "home"))
    boxes = Sandboxes()
    one, two, kept = saved(boxes, "a"), saved(boxes, "b"), saved(boxes, "c")
    refer(boxes, kept)
    boxes.audit.close()
    code, said = cli(capsys, monkeypatch, "sandbox", "snapshots", "ls", "--json")
    rows = {row["id"]: row for row in json.loads(said)}
    assert (code, rows[kept]["kept_by"], rows[one]["kept_by"]) == (0, "sandbox box", None)
    assert rows[one]["bytes"] == 600
    assert cli(capsys, monkeypatch, "sandbox", "snapshots", "rm", one, "--json") == (
        0, json.dumps({"snapshots": [one]}) + "\n",
    )  # fmt: skip
    code, said = cli(capsys, monkeypatch, "sandbox", "snapshots", "rm", kept)
    assert (code, "sandbox box refers to snapshot" in said) == (1, True)
    assert cli(capsys, monkeypatch, "sandbox", "snapshots", "rm", "nothing")[0] == 2
    code, said = cli(capsys, monkeypatch, "sandbox", "snapshots", "prune", "--older-than", "1y")
    assert (code, "is no age" in said) == (2, True)
    assert cli(capsys, monkeypatch, "sandbox", "snapshots", "prune", "--older-than", "7d") == (0, "")
    assert cli(capsys, monkeypatch, "sandbox", "snapshots", "prune", "--older-than", "5m") == (0, two + "\n")
    assert cli(capsys, monkeypatch, "sandbox", "snapshots", "keep", "--keep-days", "7", "--keep-bytes", "5GiB") == (
        0, "7 days\n5 GiB\n",
    )  # fmt: skip
    assert (
        cli(capsys, monkeypatch, "sandbox", "snapshots", "keep", "--keep-days", "none")[1]
        == "no bound of age\n5 GiB\n"
    )
    assert cli(capsys, monkeypatch, "sandbox", "snapshots", "keep", "--keep-bytes", "many")[0] == 2


def test_a_journals_snapshots_are_needed_while_any_run_that_has_them_is_young_or_can_go_on() -> None:
    def run(name: str, state: str, ended_s: float) -> RunRecord:
        return RunRecord(
            id=name, kind="agent", state=state, payload=None, output=None, error=None, created_s=0.0,
            updated_s=ended_s, owner=None, parent=None, forked_from=None,
        )  # type: ignore[arg-type]  # fmt: skip

    step = StepRecord(number=1, name="call 0.0", output={"epoch": "s1"}, error=None, started_s=0, ended_s=0)
    think = StepRecord(
        number=2, name="think 1", output={"epoch": {"turn": 1}}, error=None, started_s=0, ended_s=0
    )
    assert snapshots_of([step, think]) == {"s1"}
    runs = [
        (run("old", "done", 0.0), {"s1", "shared"}), (run("branch", "done", 990.0), {"shared", "s2"}),
        (run("aside", "suspended", 0.0), {"s3"}), (run("at work", "running", 0.0), {"s4"}),
        (run("failed", "failed", 0.0), {"s5"}),
    ]  # fmt: skip
    assert ended(runs) == {"s1": 0.0, "shared": 990.0, "s2": 990.0, "s5": 0.0}


def test_runs_are_pruned_by_their_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORTICE_SANDBOX_HOME", str(tmp_path / "home"))
    boxes = Sandboxes()
    one, other = saved(boxes, box_name("old")), saved(boxes, box_name("unknown"))
    boxes.audit.close()
    place = tmp_path / "agents"
    place.mkdir()
    journal(place, one)
    options = ["--home", str(place), "--older-than", "1s", "--json"]
    assert cli(capsys, monkeypatch, "agent", "prune", *options) == (0, '{"snapshots":[]}\n'), "it can go on"
    with sqlite3.connect(place / "runs.db") as db:
        db.execute("update workflow_status set status = 'SUCCESS', output = 'null'")
    assert (
        cli(capsys, monkeypatch, "agent", "prune", "--dry-run", *options)[1] == f'{{"snapshots":["{one}"]}}\n'
    )
    assert cli(capsys, monkeypatch, "agent", "prune", *options)[1] == f'{{"snapshots":["{one}"]}}\n'
    left = Sandboxes()
    assert [m.id for m in left.snapshots.list()] == [other]
    left.audit.close()


async def test_runs_are_pruned_by_themselves_once_an_hour(boxes: Sandboxes, tmp_path: Path) -> None:
    place = tmp_path / "agents"
    place.mkdir()
    ended_long_ago = saved(boxes, box_name("old"), age_s=90 * DAY_S)
    unknown = saved(boxes, box_name("unknown"), age_s=90 * DAY_S)
    journal(place, ended_long_ago, state="SUCCESS")
    home = AgentHome(folder=place, db=f"sqlite:///{place / 'runs.db'}")
    with sqlite3.connect(place / "runs.db") as db:
        db.execute("update workflow_status set updated_at = 0")
    tidy_runs(home, boxes)
    assert [m.id for m in boxes.snapshots.list()] == [unknown]
    later = saved(boxes, box_name("old"), age_s=90 * DAY_S)
    tidy_runs(home, boxes)
    assert {m.id for m in boxes.snapshots.list()} == {unknown, later}, "within the hour"


def journal(place: Path, snapshot: str, *, state: str | None = None) -> None:
    """That of an earlier release, to whose first call a snapshot is added."""
    with sqlite3.connect(place / "runs.db") as db:
        text = (Path(__file__).parent.parent / "data" / "agent" / "journal_1.sql").read_text()
        db.executescript(text.replace("@TOOLS@", "tools.py"))
        db.execute(
            "update operation_outputs set output = ? where function_name = 'call 0.0'",
            [json.dumps([{"type": "observation", "epoch": snapshot}])],
        )
        if state is not None:
            db.execute("update workflow_status set status = ?, output = 'null'", [state])
