"""The process dies before or after any one sync or rename: what was committed is there, what was not is nowhere.

A run has two turns: the first has nothing before it, and a third would meet the second's calls again.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mortice.obs.audit_verify import verify

WORKERS = """
import asyncio, json, os, pathlib, signal, sys

from mortice.agent.ledger import Ledger, RunEffects
from mortice.sandbox import Epochs, SandboxLost, SandboxNotFound, Sandboxes

count = 0

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole or not at all, wherever we die

def dying(real, at, when):
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

async def work(home, run, at, when):
    ledger = Ledger(f"sqlite:///{home / 'effects.db'}")
    effects = RunEffects(ledger, run)
    async with Sandboxes(home) as boxes:
        epochs = Epochs(boxes, run, effects=effects)
        last = epochs.last()
        if last is None:
            try:
                box, turn = await boxes.attach(run), 0
            except (SandboxNotFound, SandboxLost):
                box, turn = await boxes.create(name=run, keep=True), 0
            await box.run_cell("total = 0", cell_id="setup")
        else:
            resumed = await epochs.resume(keep=True)
            box, turn = resumed.box, last.journal["turn"] + 1
        for name in ("fsync", "fdatasync", "link"):
            setattr(os, name, dying(getattr(os, name), at, when))
        pathlib.Path.rename = dying(pathlib.Path.rename, at, when)
        while turn < 2:
            begun = ledger.begin(run, turn, 0, "post", {"turn": turn}, idempotent=False, approved=False)
            if begun.action in ("go", "ask"):
                with open(home / f"world-{run}", "a+") as world:
                    world.seek(0)
                    if str(turn) not in world.read().split():  # ask: began, and nobody saw the end; so look
                        print(turn, file=world)
                ledger.finish(begun.key, turn)
            result = await box.run_cell(f"total += {turn + 1}; total", cell_id=f"turn-{turn}")
            await epochs.commit(box, {"turn": turn, "total": result.value})
            say("committed", turn)
            turn += 1
        say("end", (await box.run_cell("total", cell_id="end")).value, "calls", count)
        await box.destroy()

for line in sys.stdin:
    home, run, at, when = json.loads(line)
    child = os.fork()  # with everything imported, and no thread yet
    if not child:
        asyncio.run(work(pathlib.Path(home), run, at, when))
        os._exit(0)
    os.waitpid(child, 0)
    say("done")
"""


class Workers:
    """Processes that are forked one after the other, on one home; each dies at a call of its own, or ends."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def work(self, run: str, at: int, when: str) -> list[str]:
        """What one said until it was gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(self.home), run, at, when]), file=self._process.stdin, flush=True)
        said = []
        for line in self._process.stdout:
            if line == "done\n":
                return said
            said.append(line.rstrip("\n"))
        raise AssertionError("the process that forks workers has ended")

    def survive(self, at: int, when: str) -> bool:
        """Die at that call, resume without, and check; False when the run ended before the call came."""
        run = f"{when}{at}"
        first = self.work(run, at, when)
        if first and first[-1].startswith("end"):
            return False
        said = self.work(run, 0, "never")
        committed = [line for line in first + said if line.startswith("committed")]
        assert said[-1].startswith("end 3 "), (run, first, said)
        # said twice where it was killed between saying so and its books
        assert len(committed) - len(set(committed)) <= 1, (run, first, said)
        world = (self.home / f"world-{run}").read_text().split()
        assert sorted(set(world)) == sorted(world) == ["0", "1"], (run, world)
        books = [path.read_text() for path in (self.home / "boxes").glob("*/box.json")]
        assert not [text for text in books if f'"{run}"' in text], run
        return True

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture
def workers(sandbox_home: Path) -> Iterator[Workers]:
    found = Workers(sandbox_home)
    yield found
    found.end()


@pytest.mark.timeout(200)
def test_death_at_some_sync_or_rename(workers: Workers) -> None:
    seed = 20261128
    print("seed", seed)
    draw = random.Random(seed)
    for _ in range(2):
        assert workers.survive(draw.randrange(1, 18), draw.choice(["before", "after"]))
    assert verify(workers.home / "audit").ok


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_death_at_every_sync_and_rename(workers: Workers) -> None:
    for when in ("before", "after"):
        at = 1
        while workers.survive(at, when):
            at += 1
        assert at > 15, at
    assert verify(workers.home / "audit").ok
