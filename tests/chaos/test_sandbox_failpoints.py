"""The process dies before or after any one sync or rename: what was committed is there, what was not is nowhere."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from mortice.obs.audit_verify import verify

WORKER = """
import asyncio, os, pathlib, signal, sys
home, at, when = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
count = 0

def dying(real):
    def call(*arguments, **keywords):
        global count
        count += 1
        mine = count  # other threads sync too
        if mine == at and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **keywords)
        if mine == at and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

from mortice.agent.ledger import Ledger, RunEffects
from mortice.sandbox import Epochs, SandboxLost, SandboxNotFound, Sandboxes

async def main():
    ledger = Ledger(f"sqlite:///{home / 'effects.db'}")
    effects = RunEffects(ledger, "run")
    async with Sandboxes(home) as boxes:
        epochs = Epochs(boxes, "run", effects=effects)
        last = epochs.last()
        if last is None:
            try:
                box, turn = await boxes.attach("of-the-run"), 0
            except (SandboxNotFound, SandboxLost):
                box, turn = await boxes.create(name="of-the-run", keep=True), 0
            await box.run_cell("total = 0", cell_id="setup")
        else:
            resumed = await epochs.resume(keep=True)
            box, turn = resumed.box, last.journal["turn"] + 1
        os.fsync, os.fdatasync, os.link = dying(os.fsync), dying(os.fdatasync), dying(os.link)
        pathlib.Path.rename = dying(pathlib.Path.rename)
        while turn < 3:
            begun = ledger.begin(effects.run, turn, 0, "post", {"turn": turn}, idempotent=False, approved=False)
            if begun.action in ("go", "ask"):
                with open(home / "world", "a+") as world:
                    world.seek(0)
                    if str(turn) not in world.read().split():  # ask: began, and nobody saw the end; so look
                        print(turn, file=world)
                ledger.finish(begun.key, turn)
            result = await box.run_cell(f"total += {turn + 1}; total", cell_id=f"turn-{turn}")
            await epochs.commit(box, {"turn": turn, "total": result.value})
            print("committed", turn, flush=True)
            turn += 1
        print("end", (await box.run_cell("total", cell_id="end")).value, "calls", count)
        await box.destroy()

asyncio.run(main())
"""


def work(home: Path, at: int, when: str) -> list[str]:
    command = [sys.executable, "-c", WORKER, str(home), str(at), when]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout.splitlines()


def survive(home: Path, at: int, when: str) -> bool:
    """Die at that call, resume without, and check; False when the run ended before the call came."""
    first = work(home, at, when)
    if first and first[-1].startswith("end"):
        return False
    said = work(home, 0, "never")
    committed = [line for line in first + said if line.startswith("committed")]
    assert said[-1].startswith("end 6 "), (at, when, first, said)
    assert len(committed) - len(set(committed)) <= 1, (
        at,
        when,
        first,
        said,
    )  # said, and killed before the books had it
    world = (home / "world").read_text().split()
    assert sorted(set(world)) == sorted(world) == ["0", "1", "2"], (at, when, world)
    assert verify(home / "audit").ok, (at, when)
    assert not [p for p in (home / "boxes").iterdir() if (p / "box.json").exists()]
    return True


@pytest.mark.timeout(200)
def test_death_at_some_sync_or_rename(sandbox_home: Path) -> None:
    seed = 20261128
    print("seed", seed)
    draw = random.Random(seed)
    for n in range(2):
        assert survive(sandbox_home / str(n), draw.randrange(1, 18), draw.choice(["before", "after"]))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_death_at_every_sync_and_rename(sandbox_home: Path) -> None:
    for when in ("before", "after"):
        at = 1
        while survive(sandbox_home / f"{when}{at}", at, when):
            at += 1
        assert at > 15, at
