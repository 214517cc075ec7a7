"""The books of sandboxes under power loss, two owners, stepped clocks and other versions. Most of it needs no machine."""

import asyncio
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mortice.obs.audit import AuditLog
from mortice.obs.audit_verify import verify
from mortice.sandbox import (
    Epochs,
    Home,
    LeaseLost,
    Sandboxes,
    SandboxNotFound,
    SandboxSpec,
    SnapshotRefused,
)
from mortice.sandbox.epochs import Epoch
from mortice.sandbox.home import digest_of, write_once
from mortice.sandbox.record import Lease
from mortice.sandbox.snapshots import Snapshots

OLD_MANIFEST = (
    '{"id":"s0123456789ab","box":"b0123456789ab","name":"n","parent":null,"epoch":3,"backend":"gvisor",'
    '"backend_version":"v","machine":"m","image_digest":"i","agent_digest":"a","spec":{"backend":"auto","image":"base",'
    '"limits":{"memory_bytes":536870912,"cpus":1.0,"num_processes":64,"disk_bytes":268435456,"output_bytes":67108864,'
    '"timeout_s":60.0},"egress":{"mode":"allowlist","allow":["a.example:443"],"max_bytes":268435456,'
    '"max_connections":16,"max_requests_per_minute":600},"env":{"B":"1","A":"2"},"audit":"strict"},'
    '"files":[{"name":"machine/checkpoint.img","size":3,"sha256":"ab"}],"created_at":1.5,"audit_chain":"b0123456789ab",'
    '"audit_seq":9,"audit_head":"h","digest":"ba624acea1c2a02f008a3166240d18e31b70fe07b9a59a86763ed7e87040420e"}'
)
OLD_EPOCH = (
    '{"run":"r","number":4,"journal":{"turn":4,"b":[1,{"z":1,"a":2}]},"box":"b0123456789ab","snapshot":"s0123456789ab",'
    '"audit_chain":"b0123456789ab","audit_seq":9,"audit_head":"h","num_effects":2,"created_at":1.5,"pinned":false,'
    '"digest":"f0c2bea7ec1e7032862e36b83b4e907ae54b058606b7f49fdf991aab06922580"}'
)


def publish(snapshots: Snapshots, content: bytes, epoch: int) -> str:
    """A snapshot as a machine would leave it, with `content` for its memory."""
    snapshot_id = snapshots.begin()
    folder = snapshots.machine_folder(snapshot_id, published=False)
    folder.mkdir()
    for name in ("checkpoint.img", "pages.img"):
        (folder / name).write_bytes(content)
    snapshots.publish(
        snapshot_id, cached=False, box="b0", name="n", parent=None, epoch=epoch, backend="gvisor", backend_version="v",
        image_digest="i", agent_digest="a", spec=SandboxSpec(), audit_chain="b0", audit_seq=epoch, audit_head="h",
    )  # fmt: skip
    return snapshot_id


def commit(home: Home, number: int, snapshot: str) -> None:
    epoch = Epoch(
        run="r", number=number, journal={"turn": number}, box="b0", snapshot=snapshot, audit_chain="b0",
        audit_seq=number, audit_head="h", num_effects=0, created_at=0.0,
    )  # fmt: skip
    write_once(
        home.runs / "r" / "epochs" / f"{number:08d}.json",
        msgspec.structs.replace(epoch, digest=digest_of(epoch)),
    )


class LosingDisk:
    """Keeps, at every sync and rename, what a power cut at that moment may leave: what was synced, and of everything else
    nothing, a part, or all of it."""

    def __init__(self, root: Path, states: Path, draw: random.Random) -> None:
        self.root, self.states, self.draw = root, states, draw
        self.synced: dict[int, bytes] = {}  # inode -> content at its last sync
        self.num = 0
        self.lock = threading.Lock()  # files are synced side by side

    @contextmanager
    def watching(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        fsync, rename, link = os.fsync, Path.rename, os.link

        def synced(fd: int) -> None:
            self.cut()
            fsync(fd)
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            if path.is_file():
                self.synced[path.stat().st_ino] = path.read_bytes()

        def renamed(path: Path, target: Path) -> Path:
            self.cut()
            return rename(path, target)

        def linked(path: Path, target: Path) -> None:
            self.cut()
            link(path, target)

        with patch.context() as inner:
            inner.setattr(os, "fsync", synced)
            inner.setattr(os, "fdatasync", synced)
            inner.setattr(Path, "rename", renamed)
            inner.setattr(os, "link", linked)
            yield
        self.cut()

    def cut(self) -> None:
        """Three machines that lost power now, each differently unlucky."""
        with self.lock:
            self._cut()

    def _cut(self) -> None:
        for _ in range(3):
            state = self.states / str(self.num)
            self.num += 1
            shutil.copytree(self.root, state, symlinks=True)
            for path in [p for p in self.root.rglob("*") if p.is_file()]:
                whole, safe = path.read_bytes(), self.synced.get(path.stat().st_ino, b"")
                if whole != safe:
                    torn = whole[: self.draw.randrange(len(whole) + 1)]
                    kept = self.draw.choice([safe, torn, bytes(len(whole)), whole])
                    (state / path.relative_to(self.root)).write_bytes(kept)


@pytest.mark.parametrize("seed", range(3))
def test_power_loss_leaves_the_last_committed_epoch_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    root = tmp_path / "home"
    home = Home(root)
    (home.runs / "r" / "epochs").mkdir(parents=True)
    snapshots = Snapshots(home)
    commit(home, 0, publish(snapshots, b"memory of turn 0" * 1000, 0))
    disk = LosingDisk(root, tmp_path / "states", draw)
    for path in root.rglob("*"):
        if path.is_file():
            disk.synced[path.stat().st_ino] = path.read_bytes()
    with disk.watching(monkeypatch):
        commit(home, 1, publish(snapshots, b"memory of turn 1" * 1000, 1))
    assert disk.num >= 24
    found = []
    for n in range(disk.num):
        after = Home(tmp_path / "states" / str(n))
        kept = Snapshots(after)
        kept.sweep()
        epochs = [e for e in (_read(p) for p in sorted((after.runs / "r" / "epochs").glob("*.json"))) if e]
        last = epochs[-1]
        try:
            folder = kept.check_files(kept.manifest(last.snapshot))
        except (SnapshotRefused, SandboxNotFound) as error:
            pytest.fail(
                f"seed {seed}, cut {n}: epoch {last.number} names a snapshot that is not whole: {error}"
            )
        assert folder.joinpath("pages.img").read_bytes() == f"memory of turn {last.number}".encode() * 1000
        assert not [p for p in after.snapshots.iterdir() if p.name.startswith(".")]
        found.append(last.number)
    assert found == sorted(found), "once committed it stays"
    assert (found[0], found[-1]) == (0, 1)


def _read(path: Path) -> Epoch | None:
    try:
        epoch = msgspec.json.decode(path.read_bytes(), type=Epoch)
    except msgspec.DecodeError:
        return None
    return epoch if epoch.digest == digest_of(epoch) else None


@pytest.mark.parametrize("seed", range(3))
def test_any_prefix_of_the_log_can_be_gone_on_from(tmp_path: Path, seed: int) -> None:
    """Appended files lose their unsynced end."""
    draw = random.Random(seed)
    with AuditLog(tmp_path / "log") as log:
        for n in range(20):
            log.append("cell", chain="b0", n=n)
    lines = (tmp_path / "log" / "b0.jsonl").read_bytes()
    for size in [draw.randrange(1, len(lines)) for _ in range(20)]:
        folder = tmp_path / f"log-{size}"
        folder.mkdir(exist_ok=True)
        (folder / "b0.jsonl").write_bytes(lines[:size])
        with AuditLog(folder) as log:
            log.append("cell", chain="b0", n="after")
        assert verify(folder).ok, size


def test_two_supervisors_cannot_both_commit_an_epoch(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (home.runs / "r" / "epochs").mkdir(parents=True)
    commit(home, 0, "s1")
    with pytest.raises(FileExistsError):
        commit(home, 0, "s2")
    (path,) = (home.runs / "r" / "epochs").iterdir()
    assert json.loads(path.read_bytes())["snapshot"] == "s1"


async def test_of_two_owners_the_loser_runs_publishes_and_records_nothing(boxes: Sandboxes) -> None:
    """Two supervisors believe that they own a box, as when a shared disk loses its locks."""
    epochs = Epochs(boxes, "r")
    box = await boxes.create()
    await box.run_cell("x = 1", cell_id="a")
    await epochs.commit(box, {"turn": 0})
    before = [m.id for m in boxes.snapshots.list()]
    place = boxes.home.box(box.record.id)
    (place / "lease").rename(place / "lost-lease")
    shutil.copy(place / "lost-lease", place / "lease")
    (place / "lost-lease").unlink()
    winner = Lease(place)
    try:
        for attempt in (
            lambda: box.run_cell("x = 2", cell_id="b"),
            lambda: box.write("/work/f", b"late"),
            lambda: box.snapshot(),
            lambda: epochs.commit(box, {"turn": 1}),
        ):
            with pytest.raises(LeaseLost):
                await attempt()
        assert [m.id for m in boxes.snapshots.list()] == before
        assert [e.number for e in epochs.all()] == [0]
    finally:
        os.pwrite(winner._fd, str(box._lease.token).encode(), 0)  # so that the fixture may end the machine
        winner.release()


@pytest.mark.parametrize("step_s", [-3600.0, 86400.0])
async def test_a_stepped_clock_changes_nothing(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    epochs = Epochs(boxes, "r")
    box = await boxes.create()
    await box.run_cell("x = 1", cell_id="a", timeout_s=30)
    await epochs.commit(box, {"turn": 0})
    begun = boxes.snapshots.begin()  # another snapshot is under way when the clock steps
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + step_s)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(step_s * 1e9))
    async with Sandboxes(boxes.home.root) as others:  # sweeps, and takes nothing that lives
        assert [i.state for i in others.list()] == ["ready"]
    assert boxes.snapshots.machine_folder(begun, published=False).parent.is_dir()
    boxes.snapshots.abandon(begun)
    assert (await box.run_cell("x + 1", cell_id="b", timeout_s=30)).value == "2"
    await box.run_cell("x = 5", cell_id="c")
    await epochs.commit(box, {"turn": 1})
    await box.destroy()
    resumed = await epochs.resume()
    assert (resumed.epoch.number, (await resumed.box.run_cell("x", cell_id="d")).value) == (1, "5")
    await asyncio.sleep(0)
    assert verify(boxes.home.audit).ok


def test_snapshots_and_epochs_of_before_are_read_and_those_of_later_refused_by_name(tmp_path: Path) -> None:
    home = Home(tmp_path)
    snapshots = Snapshots(home)
    place = home.snapshots / "s0123456789ab"
    place.mkdir()
    (place / "MANIFEST").write_text(OLD_MANIFEST)
    manifest = snapshots.manifest("s0123456789ab")
    assert (manifest.version, manifest.spec.egress.allow) == (0, ("a.example:443",))
    later: dict[str, Any] = json.loads(OLD_MANIFEST) | {"version": 2, "chunks": ["x"]}
    (place / "MANIFEST").write_text(json.dumps(later))
    with pytest.raises(SnapshotRefused, match="of version 2, and this software reads up to 1: update it"):
        snapshots.manifest("s0123456789ab")
    epochs = Epochs(_Boxes(home), "r")  # type: ignore[arg-type]
    folder = home.runs / "r" / "epochs"
    (folder / "00000004.json").write_text(OLD_EPOCH)
    last = epochs.last()
    assert last is not None
    assert last.journal["turn"] == 4
    (folder / "00000005.json").write_text(
        json.dumps(json.loads(OLD_EPOCH) | {"number": 5, "version": 2, "new": 1})
    )
    with pytest.raises(SnapshotRefused, match="epoch 00000005 of run 'r': it is of version 2"):
        epochs.last()


class _Boxes:
    def __init__(self, home: Home) -> None:
        self.home = home
