"""Machines with a kernel of their own, booted for real in QEMU; under emulation where KVM cannot run ordinary guests.

One machine boots for the whole file and is saved; each test takes a clone of it.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mortice.obs.audit_verify import records, verify
from mortice.sandbox import (
    BackendUnavailable,
    Egress,
    Limits,
    Sandboxes,
    SandboxLost,
    SandboxSpec,
    SnapshotRefused,
    WarmPool,
    cgroups,
)
from mortice.sandbox.box import Box
from mortice.sandbox.images import find_vm
from mortice.sandbox.kvm import probe_kvm

MIB = 1 << 20
LIMITS = Limits(memory_bytes=128 * MIB, disk_bytes=16 * MIB, num_processes=24)
STRENGTH = "microvm" if probe_kvm().hardware else "emulated"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.geteuid() != 0 or find_vm() is None,
        reason="needs root and what `mortice sandbox setup --vm` installs (QEMU, a guest kernel)",
    ),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("vm") / "home"
    with pytest.MonkeyPatch.context() as patch:
        if STRENGTH == "emulated":
            patch.setenv("MORTICE_MICROVM", "emulated")
        yield root
    for path in root.glob("boxes/b*"):  # of a test that failed
        asyncio.run(cgroups.empty(path.name))


@pytest.fixture(scope="module")
def saved(home: Path) -> str:
    """A snapshot of a machine that has booted; its interpreter holds `x`."""

    async def boot() -> str:
        async with Sandboxes(home) as boxes:
            spec = SandboxSpec(backend="microvm", limits=LIMITS, egress=Egress(mode="public"))
            box = await boxes.create_box(spec)
            assert (await box.run_cell("import random, uuid; x = 41", cell_id="setup")).ok
            return await box.snapshot()

    return asyncio.run(boot())


@pytest.fixture
async def boxes(home: Path, saved: str) -> AsyncIterator[Sandboxes]:
    async with Sandboxes(home) as found:
        yield found
        ids = [record.id for record in found.books.records()]
    assert not [i for i in ids if cgroups.groups(i)], "a control group was left behind"
    assert not list((home / "boxes").iterdir())


@pytest.fixture
async def box(boxes: Sandboxes, saved: str) -> Box:
    return await boxes.restore(saved)


async def answers(box: Box) -> None:
    assert (await asyncio.wait_for(box.run_cell("40 + 2", cell_id="after"), 60)).value == "42"


async def test_the_guest_has_a_kernel_of_its_own_one_disk_to_read_and_nothing_else(box: Box) -> None:
    result = await box.run_cell("import os; (os.uname().release, os.getuid())", cell_id="a")
    assert result.value is not None
    assert os.uname().release not in result.value
    assert result.value.endswith("1000)")
    assert (result.strength, box.info.strength) == (STRENGTH, STRENGTH)
    shell = await box.exec(
        ["sh", "-c", "ls /proc/1/fd; cat /proc/1/cmdline; grep -v lo: /proc/net/dev | tail -n +3; touch /usr/x; "
         "ls /dev; kill -9 1; mount -t proc p /tmp; grep '^/dev' /proc/mounts"],
        cell_id="b",
    )  # fmt: skip
    found = shell.stdout.split("\n")
    assert found[:-2] == ["fd", "full", "null", "random", "shm", "urandom", "zero"], found
    assert found[-2].startswith("/dev/vda / ext4 ro"), found
    await answers(box)


async def test_clones_have_memory_in_common_and_nothing_that_names_them(boxes: Sandboxes, box: Box) -> None:
    await box.run_cell("x += 1; open('/work/f', 'w').write('kept')", cell_id="b")
    forks = [o.box for o in await box.fork(2) if o.box is not None]
    assert len(forks) == 2
    look = (
        "import socket; (x, open('/work/f').read(), random.random(), str(uuid.uuid4()), os.urandom(8).hex(),"
    )
    look += " socket.gethostname(), open('/etc/machine-id').read())"
    seen = []
    for each in (box, *forks):
        result = await each.run_cell("import os; " + look, cell_id="look")
        seen.append(eval(result.value or ""))
    assert {s[:2] for s in seen} == {(42, "kept")}
    for n in range(2, 7):
        assert len({s[n] for s in seen}) == 3, seen
    clock = float((await forks[0].run_cell("import time; time.time()", cell_id="t")).value or 0)  # type: ignore[attr-defined]
    assert abs(clock - time.time()) < 5


async def test_clones_of_a_template_share_its_memory_until_they_write(
    boxes: Sandboxes, home: Path, saved: str
) -> None:
    clones = [await boxes.restore(saved) for _ in range(4)]
    template = home / "snapshots" / saved / "machine" / "ram"
    before = template.read_bytes()
    for n, clone in enumerate(clones):
        await clone.run_cell(f"mine = b'{n}' * 2_000_000; x += {n}", cell_id="write")
    values = [(await c.run_cell("(x, mine[:1], len(mine))", cell_id="read")).value for c in clones]
    assert values == [f"({41 + n}, b'{n}', 2000000)" for n in range(4)]
    assert template.read_bytes() == before
    for clone in clones:
        mapped = mapping(clone.machine.pid, template)
        own, shared = mapped["Private_Dirty"], mapped["Shared_Clean"]
        assert 2 * MIB <= own < 96 * MIB, mapped  # what it wrote, not the template's size
        assert shared > 8 * MIB, mapped


def mapping(pid: int, path: Path) -> dict[str, int]:
    """Bytes by kind, of the mapping of a file in a process."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.endswith(str(path)))
    rows = (line.split() for line in lines[start + 1 : start + 20])
    return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows if row[-1] == "kB"}


async def test_a_pool_boots_once_and_starts_every_other_machine_from_that(boxes: Sandboxes) -> None:
    before = {m.id for m in boxes.snapshots.list()}
    spec = SandboxSpec(backend="microvm", limits=LIMITS)
    async with WarmPool(boxes, spec, size=1, prepare="import json\nready = [6]") as pool:
        (template,) = {m.id for m in boxes.snapshots.list()} - before
        boxes.backends["microvm"].start = None  # type: ignore[method-assign,assignment]  # nothing may boot from here on
        try:
            one, two = await pool.lease(), await pool.lease()
            look = "import os, random\nready.append(len(ready)); (json.dumps(ready), random.random(), os.uname().nodename)"
            seen = [eval((await box.run_cell(look, cell_id="look")).value or "") for box in (one, two)]
        finally:
            del boxes.backends["microvm"].start
    assert [box.info.parent_snapshot for box in (one, two)] == [template, template]
    assert [s[0] for s in seen] == ["[6, 1]", "[6, 1]"]
    assert seen[0][1:] != seen[1][1:]
    assert {m.id for m in boxes.snapshots.list()} == before


async def test_a_cell_runs_once_over_a_snapshot(boxes: Sandboxes, box: Box) -> None:
    first = await box.run_cell("x += 1; x", cell_id="once")
    again = await boxes.restore(await box.snapshot())
    second = await again.run_cell("x += 1; x", cell_id="once")
    assert (first.value, second.value, first.replayed, second.replayed) == ("42", "42", False, True)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import os\nwhile True:\n    if os.fork() == 0:\n        import time; time.sleep(60); os._exit(0)",
            "processes",
        ),
        ("f = open('/work/big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))", "disk"),
        ("blocks = []\nwhile True: blocks.append(bytearray(b'x' * (1 << 20)))", "oom"),
        ("while True: print('x' * 65536)", "output"),
        ("while True: pass", "timeout"),
    ],
    ids=["forks", "disk", "memory", "output", "time"],
)
async def test_each_limit_holds_and_says_its_name(box: Box, code: str, reason: str) -> None:
    timeout_s = 3.0 if reason == "timeout" else 120.0
    result = await box.run_cell(code, cell_id="greedy", timeout_s=timeout_s)
    assert (result.ok, result.failure and result.failure.reason) == (False, reason), result
    await answers(box)


async def test_paused_it_stands_still_and_parked_it_costs_nothing(box: Box) -> None:
    await box.pause()
    await box.resume()
    assert await box.park_if_quiet()
    stat = Path(f"/proc/{box.machine.pid}/stat")
    while stat.read_text().rsplit(") ", 1)[1][0] != "T":  # the signal is on its way
        await asyncio.sleep(0.01)
    await answers(box)


async def test_qemu_runs_as_nobody_with_no_way_to_the_network(box: Box) -> None:
    status = Path(f"/proc/{box.machine.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["64999"] * 4
    assert (fields["CapEff"].strip("0"), fields["CapPrm"].strip("0"), fields["NoNewPrivs"]) == ("", "", "1")
    assert fields["Seccomp"] == "2"
    ours, its = (os.readlink(f"/proc/{pid}/ns/net") for pid in ("self", box.machine.pid))
    assert ours != its
    assert os.readlink(f"/proc/{box.machine.pid}/root").endswith("/empty")


async def test_a_killed_machine_is_told_at_once_and_its_snapshot_lives(
    boxes: Sandboxes, box: Box, saved: str
) -> None:
    running = asyncio.create_task(box.run_cell("import time; time.sleep(60)", cell_id="b"))
    while box.num_running == 0:
        await asyncio.sleep(0.01)
    os.kill(box.machine.pid, signal.SIGKILL)
    with pytest.raises(SandboxLost) as caught:
        await asyncio.wait_for(running, 30)
    assert caught.value.reason == "lost"
    assert (await (await boxes.restore(saved)).run_cell("x", cell_id="q")).value == "41"


async def test_another_process_takes_it_over(boxes: Sandboxes, home: Path, saved: str) -> None:
    kept = await boxes.restore(saved, name="kept", keep=True)
    await kept.run_cell("x = 7", cell_id="a")
    await kept.close()
    async with Sandboxes(home) as others:
        again = await others.attach("kept")
        assert (await again.run_cell("x", cell_id="b")).value == "7"
        assert (await again.run_cell("x = 8", cell_id="a")).replayed
        await again.destroy()


@pytest.mark.parametrize("name", ["ram", "state"])
async def test_a_damaged_memory_image_never_runs(boxes: Sandboxes, home: Path, box: Box, name: str) -> None:
    """Of a machine that booted, or was restored from a stream, memory is a file apart; of its clones one stream."""
    apart = await boxes.restore(await box.snapshot()) if name == "ram" else box
    snapshot = await apart.snapshot()
    memory = home / "snapshots" / snapshot / "machine" / name
    assert memory.stat().st_size > 16 * MIB
    with memory.open("r+b") as file:
        file.seek(memory.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(SnapshotRefused, match=f"machine/{name} is not what was written"):
        await boxes.restore(snapshot)


async def test_its_only_way_out_is_the_proxy(boxes: Sandboxes, box: Box) -> None:
    code = (
        "import socket, urllib.request, urllib.error\n"
        "def tried(call):\n    try: return call()\n"
        "    except urllib.error.HTTPError as e: return e.code, e.read().decode()\n"
        "    except OSError as e: return type(e).__name__, e.errno\n"
        "print(tried(lambda: socket.create_connection(('192.0.2.1', 80), 5)))\n"
        "print(tried(lambda: urllib.request.urlopen('http://127.0.0.2:1/', timeout=20)))"
    )
    result = await box.run_cell(
        "import os; os.environ['no_proxy'] = ''\n" + code, cell_id="net", timeout_s=60.0
    )
    direct, proxied = result.stdout.splitlines()
    assert direct == "('OSError', 101)", result  # no route
    status, body = eval(proxied)
    assert (status, json.loads(body)["error"]) == (403, "egress_denied")


async def test_what_was_asked_of_it_is_in_the_log_with_its_strength(home: Path, box: Box) -> None:
    await box.run_cell("1", cell_id="logged")
    await box.ping()
    cells = [r for r in records(home / "audit", box.record.id) if r["kind"] == "cell"]
    assert [(r["cell_id"], r["strength"]) for r in cells] == [("logged", STRENGTH)]
    assert verify(home / "audit").ok


@pytest.mark.skipif(STRENGTH == "microvm", reason="this machine has the real thing")
async def test_auto_never_takes_an_emulated_machine(
    boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mortice.sandbox.supervisor.AUTO_ORDER", ("microvm",))
    with pytest.raises(BackendUnavailable, match="emulated here, which is no wall"):
        await boxes.choose(SandboxSpec())


@pytest.mark.skipif(STRENGTH == "microvm", reason="this machine has the real thing")
async def test_an_emulated_machine_is_never_taken_over_or_restored_as_a_real_one(
    boxes: Sandboxes, home: Path, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = await boxes.restore(saved, name="was-emulated", keep=True)
    await kept.close()
    with monkeypatch.context() as patch:
        patch.delenv("MORTICE_MICROVM")
        async with Sandboxes(home) as others:
            assert [i.strength for i in others.list()] == ["emulated"]
            with pytest.raises(
                BackendUnavailable, match="was-emulated is emulated and microvm here is microvm"
            ):
                await others.attach("was-emulated")
            with pytest.raises(SnapshotRefused, match="from another back end"):
                await others.restore(saved)
    await (await boxes.attach("was-emulated")).destroy()


@pytest.mark.skipif(STRENGTH == "microvm", reason="this machine has the real thing")
async def test_without_emulation_it_refuses_and_says_what_the_probe_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MORTICE_MICROVM", raising=False)
    async with Sandboxes(tmp_path / "other") as boxes:
        with pytest.raises(BackendUnavailable, match="kvm probe: "):
            await boxes.create(SandboxSpec(backend="microvm"))
