"""Kill what there is to kill, at the worst moments: no committed turn is lost or done twice, nothing stays behind."""

import asyncio
import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mortice.obs.audit_verify import verify
from mortice.sandbox import (
    Epochs,
    SandboxError,
    Sandboxes,
    SandboxLost,
    SandboxNotFound,
    SnapshotRefused,
    cgroups,
)

WORKER = """
import asyncio, pathlib, sys
from mortice.sandbox import Epochs, Sandboxes

async def main(home):
    async with Sandboxes(home) as boxes:
        epochs = Epochs(boxes, "run")
        last = epochs.last()
        if last is None:
            box, turn = await boxes.create(keep=True), 0
            await box.run_cell("total = 0", cell_id="setup")
        else:
            resumed = await epochs.resume(keep=True)
            box, turn = resumed.box, last.journal["turn"] + 1
            print("resumed", resumed.how, resumed.epoch.number, flush=True)
        while turn < 6:
            code = f"total += {turn + 1}; print({turn + 1}, file=open('/work/log', 'a')); total"
            result = await box.run_cell(code, cell_id=f"turn-{turn}")
            print("ran", turn, result.value, flush=True)
            await epochs.commit(box, {"turn": turn, "total": result.value})
            print("committed", turn, flush=True)
            turn += 1
        print("end", (await box.run_cell("total", cell_id="end")).value, (await box.read("/work/log")).decode().split())
        await box.destroy()

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


def work(home: Path, *, kill_at: str | None = None, sandbox_too: bool = False) -> list[str]:
    """Run the worker; SIGKILL it when it says `kill_at`. Returns what it said."""
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(home)], stdout=subprocess.PIPE, text=True)
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line.strip())
        if kill_at is not None and line.startswith(kill_at):
            if sandbox_too:
                for path in (home / "boxes").glob("*/box.json"):
                    os.kill(json.loads(path.read_bytes())["pid"], signal.SIGKILL)
            process.kill()
            break
    process.wait(timeout=60)
    process.stdout.close()
    return said


@pytest.mark.parametrize(
    ("moment", "sandbox_too"),
    [
        ("ran 2", True),
        ("committed 2", False),
        pytest.param("ran 2", False, marks=pytest.mark.slow),
        pytest.param("committed 2", True, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_where_it_was(sandbox_home: Path, moment: str, sandbox_too: bool) -> None:
    work(sandbox_home, kill_at=moment, sandbox_too=sandbox_too)
    said = work(sandbox_home)
    assert said[0].startswith("resumed restored" if sandbox_too else "resumed attached")
    assert said[-1] == "end 21 ['1', '2', '3', '4', '5', '6']", said
    assert verify(sandbox_home / "audit").ok
    assert not list((sandbox_home / "boxes").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kills_at_random_moments_lose_and_double_nothing(sandbox_home: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    draw = random.Random(seed)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(sandbox_home)], stdout=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=draw.uniform(0.3, 2.5))
        except subprocess.TimeoutExpired:
            if draw.random() < 0.4:
                for path in (sandbox_home / "boxes").glob("*/box.json"):
                    try:
                        os.kill(json.loads(path.read_bytes())["pid"], signal.SIGKILL)
                    except (ProcessLookupError, OSError, ValueError):
                        continue
            process.kill()
            process.wait()
        else:
            break
    said = work(sandbox_home)
    if said and said[-1].startswith("end"):
        assert said[-1] == "end 21 ['1', '2', '3', '4', '5', '6']", (seed, said)
    assert verify(sandbox_home / "audit").ok, seed


async def test_a_dead_owner_s_sandboxes_are_taken_away(sandbox_home: Path) -> None:
    program = (
        "import asyncio, pathlib, sys, os, signal\nfrom mortice.sandbox import Sandboxes\n"
        "async def main():\n    b = Sandboxes(pathlib.Path(sys.argv[1]))\n    x = await b.create()\n"
        "    print(x.record.id, x.machine.pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\nasyncio.run(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(sandbox_home)], capture_output=True, text=True, timeout=60
    )
    box_id, pid = done.stdout.split()
    assert Path(f"/proc/{pid}").exists()
    async with Sandboxes(sandbox_home) as boxes:
        assert boxes.list() == []
    await asyncio.sleep(0.2)
    assert not glob.glob(f"/sys/fs/cgroup/*/mortice/{box_id}")
    assert not list((sandbox_home / "runsc").iterdir())


async def test_a_killed_kernel_is_told_at_once_and_its_snapshot_lives(boxes: Sandboxes) -> None:
    box = await boxes.create()
    await box.run_cell("x = 7", cell_id="a")
    snapshot = await box.snapshot()
    running = asyncio.create_task(box.run_cell("import time; time.sleep(30)", cell_id="b"))
    await asyncio.sleep(0.3)
    os.kill(box.machine.pid, signal.SIGKILL)
    with pytest.raises(SandboxLost) as caught:
        await asyncio.wait_for(running, 5)
    assert (caught.value.reason, caught.value.last_snapshot) == ("lost", snapshot)
    with pytest.raises(SandboxLost):
        await box.run_cell("1", cell_id="c")
    again = await boxes.restore(snapshot)
    assert (await again.run_cell("x", cell_id="d")).value == "7"
    await box.destroy()


async def test_every_damaged_page_of_a_snapshot_is_refused(boxes: Sandboxes) -> None:
    """gVisor itself takes a flipped page in silence."""
    box = await boxes.create()
    snapshot = await box.snapshot()
    folder = boxes.home.snapshots / snapshot
    draw = random.Random(4)
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert len(files) >= 3
    for path in files:
        whole = path.read_bytes()
        pages = range(0, len(whole), 4096)
        for at in draw.sample(pages, min(3, len(pages))):
            spot = min(at + draw.randrange(4096), len(whole) - 1)
            with path.open("r+b") as file:
                file.seek(spot)
                file.write(bytes([whole[spot] ^ 0x20]))
            with pytest.raises(SnapshotRefused):
                await boxes.restore(snapshot)
            path.write_bytes(whole)
        with path.open("r+b") as file:
            file.truncate(len(whole) - 1)
        with pytest.raises(SnapshotRefused):
            await boxes.restore(snapshot)
        path.write_bytes(whole)
    foreign = folder / "machine" / "extra"
    foreign.write_text("x")
    with pytest.raises(SnapshotRefused):
        await boxes.restore(snapshot)
    foreign.unlink()
    assert (await boxes.restore(snapshot)).info.parent_snapshot == snapshot
    assert {i.state for i in boxes.list()} == {"ready"}


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_each_page_of_each_file_is_checked(boxes: Sandboxes) -> None:
    """One bit in every page of everything that was saved, one after the other."""
    box = await boxes.create()
    manifest = boxes.snapshots.manifest(await box.snapshot())
    await box.destroy()
    folder = boxes.home.snapshots / manifest.id
    draw = random.Random(5)
    pages = 0
    for entry in manifest.files:
        with (folder / entry.name).open("r+b") as file:
            for at in range(0, entry.size, 4096):
                spot = min(at + draw.randrange(4096), entry.size - 1)
                byte = os.pread(file.fileno(), 1, spot)
                os.pwrite(file.fileno(), bytes([byte[0] ^ (1 << draw.randrange(8))]), spot)
                with pytest.raises(SnapshotRefused):
                    boxes.snapshots.check_files(manifest)
                os.pwrite(file.fileno(), byte, spot)
                pages += 1
    assert boxes.snapshots.check_files(manifest)
    assert pages > 1000


async def test_whatever_process_of_a_sandbox_is_killed_from_outside_its_neighbours_answer(
    boxes: Sandboxes,
) -> None:
    """The file server (gofer), the kernel, and the stubs that guest code runs in: each is found and killed, and each time
    the sandbox either goes on or is lost with a reason, at once and without leaving anything behind."""
    neighbour = await boxes.create()
    killed = 0
    for victim in ("runsc-gofer", "runsc-sandbox", "stubs"):
        box = await boxes.create()
        pids = set()
        for group in cgroups.groups(box.record.id):
            pids |= {int(p) for p in (group / "cgroup.procs").read_text().split()}
        named = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode() for pid in pids}
        main = [pid for pid, name in named.items() if name.endswith(victim)]
        stubs = [pid for pid, name in named.items() if not name.endswith(("runsc-gofer", "runsc-sandbox"))]
        for pid in stubs if victim == "stubs" else main:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        try:
            result = await asyncio.wait_for(
                box.run_cell("open('/etc/passwd').read(4)", cell_id="a", timeout_s=10), 60
            )
            assert result.value == "'root'" or not result.ok
        except SandboxLost as lost:
            assert lost.reason in ("lost", "oom")  # noqa: PT017
        except SandboxError as error:
            assert "gave no answer" in error.message  # noqa: PT017
        assert (await neighbour.run_cell("40 + 2", cell_id=victim)).value == "42"
        await box.destroy()
        assert not cgroups.groups(box.record.id)
    assert killed >= 2


async def test_a_home_at_the_end_of_a_long_path_works_and_leaves_no_socket(sandbox_home: Path) -> None:
    home = sandbox_home / ("deep-" * 12) / ("down-" * 12)
    async with Sandboxes(home) as boxes:
        box = await boxes.create()
        await box.run_cell("x = 3", cell_id="a")
        clone = await boxes.restore(await box.snapshot())
        assert (await clone.run_cell("x", cell_id="b")).value == "3"
        ids = [box.record.id, clone.record.id]
    left = [p for folder in ("/var/run", "/run", "/tmp") for i in ids for p in Path(folder).glob(f"*{i}*")]
    assert not left
    assert not list((home / "runsc").iterdir())


async def test_unpublished_and_missing_snapshots_do_not_exist(boxes: Sandboxes) -> None:
    box = await boxes.create()
    snapshot = await box.snapshot()
    snapshots = boxes.home.snapshots
    shutil.copytree(snapshots / snapshot, snapshots / ".s000000000000")
    (snapshots / "s111111111111").mkdir()
    for name in (".s000000000000", "s222222222222", "../boxes"):
        with pytest.raises(SandboxNotFound):
            await boxes.restore(name)
    with pytest.raises(SnapshotRefused):
        await boxes.restore("s111111111111")
    assert [m.id for m in boxes.snapshots.list()] == [snapshot]


async def test_an_epoch_whose_snapshot_is_damaged_gives_way_to_the_one_before(boxes: Sandboxes) -> None:
    epochs = Epochs(boxes, "r")
    box = await boxes.create()
    for turn in range(5):
        await box.run_cell(f"turn = {turn}", cell_id=f"t{turn}")
        await epochs.commit(box, {"turn": turn})
    assert [e.number for e in epochs.all()] == [2, 3, 4]
    assert len(boxes.snapshots.list()) == 3
    unchanged = await epochs.commit(box, {"turn": 4})
    assert unchanged.snapshot == epochs.all()[-2].snapshot, "nothing ran, nothing was saved"
    await box.destroy()
    pages = next((boxes.home.snapshots / unchanged.snapshot).rglob("pages.img"))
    pages.write_bytes(pages.read_bytes()[:-4096])
    resumed = await epochs.resume()
    assert (resumed.how, resumed.epoch.journal) == ("restored", {"turn": 3})
    assert (await resumed.box.run_cell("turn", cell_id="q")).value == "3"
