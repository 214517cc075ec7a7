"""A pool hands out sandboxes that are alike in what was prepared and in nothing else, and leaves nothing behind."""

import asyncio
import os
import signal
from typing import Any

import pytest

from mortice.sandbox import Limits, NotSupported, SandboxError, Sandboxes, SandboxSpec, WarmPool, cgroups
from mortice.sandbox.backends import gvisor
from mortice.sandbox.machine import alive
from mortice.sandbox.retention import Rules

SPEC = SandboxSpec(backend="gvisor", limits=Limits(memory_bytes=256 << 20))


async def test_leased_sandboxes_have_what_was_prepared_and_are_their_own(boxes: Sandboxes) -> None:
    before = {m.id for m in boxes.snapshots.list()}
    async with WarmPool(boxes, SPEC, size=2, prepare="import random, json\nready = [6]") as pool:
        assert pool.num_ready == 2
        (template,) = {m.id for m in boxes.snapshots.list()} - before
        leased = [await pool.lease() for _ in range(3)]  # the third where none may be ready
        look = "import os; ready.append(1); (json.dumps(ready), random.random(), os.uname().nodename)"
        seen = [eval((await box.run_cell(look, cell_id="a")).value or "") for box in leased]
        assert [s[0] for s in seen] == ["[6, 1]"] * 3
        assert len({s[1] for s in seen}) == len({s[2] for s in seen}) == 3
        assert {box.info.parent_snapshot for box in leased} == {template}
        for box in leased:
            await box.destroy()
        assert template not in {m.id for m in boxes.retention.prune(Rules(keep_days=0.0), dry_run=True)}
        while pool.num_ready < 2:  # it fills itself
            await asyncio.sleep(0.02)
        again = await pool.lease()
        assert (await again.run_cell("ready", cell_id="b")).value == "[6]"
        await again.destroy()
    assert {m.id for m in boxes.snapshots.list()} <= before
    assert boxes.list() == []


async def test_code_that_fails_to_prepare_is_told(boxes: Sandboxes) -> None:
    with pytest.raises(SandboxError, match=r"the template's code failed: .*ZeroDivisionError"):
        async with WarmPool(boxes, SPEC, size=1, prepare="1 / 0"):
            pass
    assert boxes.list() == []


async def test_forks_take_kernels_that_were_made_ready_and_nothing_of_the_rest_stays(
    boxes: Sandboxes,
) -> None:
    box = await boxes.create_box(SPEC)
    await box.run_cell("x = 6", cell_id="a")
    await boxes.make_ready(4, SPEC)
    ready = {path.name for path in boxes.home.boxes.iterdir()} - {box.record.id}
    assert len(ready) == 4
    assert [info.id for info in boxes.list()] == [box.record.id], "nobody's sandboxes yet"
    outcomes = await box.fork(2, names=["one", "one"])
    assert [outcome.error for outcome in outcomes if outcome.error] == [
        "a sandbox called 'one' exists; destroy it or take another name"
    ]
    assert [info.id in ready for info in boxes.list() if info.name == "one"] == [True]
    dead = boxes._spares._ready[0].machine.pid
    os.kill(dead, signal.SIGKILL)
    while alive(dead):
        await asyncio.sleep(0.01)
    more = [outcome.box for outcome in await box.fork(3)]
    values = [(await clone.run_cell("x * 7", cell_id="b")).value for clone in more if clone is not None]
    assert values == ["42"] * 3
    assert len({clone.info.id for clone in more if clone is not None} & ready) == 2, "one of three was dead"
    with pytest.raises(NotSupported, match="process has no kernels"):
        await boxes.make_ready(1, SandboxSpec(backend="process"))
    await boxes.make_ready(1, SPEC)
    async with Sandboxes(boxes.home.root):  # another's: what lives is left alone
        assert len(boxes._spares._ready) == 2


async def test_a_start_that_fails_half_way_leaves_nothing(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """runsc has made its control groups when it comes to a root of a kind it does not know."""
    real, made = gvisor._oci, []

    def broken(box_id: str, *rest: Any) -> dict[str, Any]:
        made.append(box_id)
        kinds = {"source": "/nowhere", "type": "erofs", "overlay": "none"}
        return real(box_id, *rest) | {
            "annotations": {f"dev.gvisor.spec.rootfs.{k}": v for k, v in kinds.items()}
        }

    monkeypatch.setattr(gvisor, "_oci", broken)
    with pytest.raises(SandboxError, match="runsc run ended with"):
        await boxes.create(SPEC)
    with pytest.raises(SandboxError, match="runsc create ended with"):
        await boxes.make_ready(1, SPEC)
    assert len(made) == 2
    assert not [box_id for box_id in made if cgroups.groups(box_id)]
    assert not list(boxes.home.runsc.iterdir())
