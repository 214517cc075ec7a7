"""microsandbox: refused by name where its guests cannot run, and its driver against a program that takes `msb`'s words."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mortice.obs.audit_verify import records
from mortice.sandbox import BackendUnavailable, Limits, NotSupported, Sandboxes, SandboxLost, SandboxSpec
from mortice.sandbox.backends import microsandbox
from mortice.sandbox.backends.microsandbox import Microsandbox, create_arguments, exec_arguments, find_msb
from mortice.sandbox.box import Box
from mortice.sandbox.images import Image
from mortice.sandbox.kvm import KvmFinding

FAKE = Path(__file__).parent / "fake_msb.py"
SPEC = SandboxSpec(backend="microsandbox", limits=Limits(memory_bytes=256 << 20, disk_bytes=8 << 20))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with KVM and the package, and findings that nobody else reads."""
    monkeypatch.setattr("mortice.sandbox.probes.images_folder", lambda: tmp_path)
    monkeypatch.setattr(microsandbox, "probe_kvm", lambda: KvmFinding(hardware=True))
    program = tmp_path / "msb"
    program.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    program.chmod(0o755)
    monkeypatch.setattr(microsandbox, "find_msb", lambda: program)


@pytest.fixture
async def box(boxes: Sandboxes, fake: None) -> Box:
    return await boxes.create_box(SPEC)


async def test_asked_for_by_name_it_refuses_with_what_the_probe_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsandbox, "probe_kvm", lambda: KvmFinding(hardware=False, why_not="no /dev/kvm"))
    async with Sandboxes(tmp_path / "home") as boxes:
        with pytest.raises(BackendUnavailable, match="microsandbox: kvm probe: no /dev/kvm"):
            await boxes.create(SPEC)
        (probe,) = [p for p in await boxes.probe() if p.backend == "microsandbox"]
        assert (probe.works, probe.why_not) == (False, "kvm probe: no /dev/kvm")


async def test_hardware_is_asked_first_then_the_package_then_a_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsandbox, "probe_kvm", lambda: KvmFinding(hardware=False, why_not="no /dev/kvm"))
    assert (await Microsandbox().probe()).why_not == "kvm probe: no /dev/kvm"
    if os.geteuid() != 0:
        return
    monkeypatch.setattr(microsandbox, "probe_kvm", lambda: KvmFinding(hardware=True))
    monkeypatch.setattr(microsandbox, "find_msb", lambda: None)
    assert (await Microsandbox().probe()).remedy == "pip install 'mortice[microsandbox]'"
    image = Image(name="base", root=tmp_path, digest="")
    monkeypatch.setattr(microsandbox, "find_image", lambda name: image)
    for script, said in (
        ("echo 'error: no guest' >&2; exit 1", "msb create ended with 1: error: no guest"),
        ("exit 3", "msb create ended with 3: it said nothing"),
    ):
        program = tmp_path / "msb"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(microsandbox, "find_msb", lambda program=program: program)
        assert (await Microsandbox().probe()).why_not == f"the probe's guest failed: {said}"


async def test_it_is_chosen_once_its_guest_has_computed(
    boxes: Sandboxes, fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = await Microsandbox().probe()
    assert probe.works, probe.why_not
    monkeypatch.setattr("mortice.sandbox.supervisor.AUTO_ORDER", ("microsandbox", "gvisor"))
    assert (await boxes.choose(SandboxSpec())).name == "microsandbox"


async def test_the_contract_is_kept(box: Box, boxes: Sandboxes) -> None:
    pieces: list[bytes] = []
    assert (await box.run_cell("x = 6; x * 7", cell_id="a")).value == "42"
    assert (await box.run_cell("x + 1", cell_id="b")).value == "7"
    assert (await box.run_cell("x + 1", cell_id="b")).replayed
    said = await box.exec(
        ["sh", "-c", "id -u; cat; touch /usr/x"], cell_id="c", stdin=b"in", on_output=lambda _, data: pieces.append(data)
    )  # fmt: skip
    assert said.stdout == "1000\nin"
    assert b"".join(pieces).startswith(b"1000\nin")
    await box.write("/work/f", b"bytes")
    assert await box.read("/work/f") == b"bytes"
    full = await box.run_cell("open('/work/big', 'wb').write(b'x' * (9 << 20))", cell_id="d")
    assert (full.failure and full.failure.reason, full.strength) == ("disk", "microvm")
    slow = await box.run_cell("while True: pass", cell_id="e", timeout_s=1.0)
    assert slow.failure is not None
    assert slow.failure.reason == "timeout"
    for refused in (box.snapshot(), box.fork(2)):
        with pytest.raises(NotSupported, match="microsandbox cannot save a running machine"):
            await refused
    logged = [r for r in records(boxes.home.audit, box.record.id) if r["kind"] == "cell"]
    assert {r["strength"] for r in logged} == {"microvm"}
    await box.destroy()


async def test_a_dead_guest_is_told_and_nothing_is_left(box: Box, boxes: Sandboxes) -> None:
    running = asyncio.create_task(box.run_cell("import time; time.sleep(60)", cell_id="b"))
    while box.num_running == 0:
        await asyncio.sleep(0.01)
    os.kill(box.machine.pid, signal.SIGKILL)
    with pytest.raises(SandboxLost):
        await asyncio.wait_for(running, 30)


async def test_another_process_takes_it_over(boxes: Sandboxes, fake: None) -> None:
    kept = await boxes.create_box(SPEC, name="kept-msb", keep=True)
    await kept.run_cell("x = 7", cell_id="a")
    calls = kept.place / "msb" / "calls"
    await kept.close()
    async with Sandboxes(boxes.home.root) as others:
        again = await others.attach("kept-msb")
        assert (await again.run_cell("x", cell_id="b")).value == "7"
        await again.pause()
        await again.resume()
        assert (await again.run_cell("x", cell_id="c")).value == "7"
        verbs = [json.loads(line)[0] for line in calls.read_text().splitlines()]
        await again.destroy()
    assert verbs == ["create", "exec", "pause", "resume"]


@pytest.mark.skipif(
    find_msb() is None, reason="needs the package microsandbox (pip install 'mortice[microsandbox]')"
)
@pytest.mark.parametrize("words", [create_arguments("b1", Path("/"), SPEC), exec_arguments("b1", "{}")])
def test_the_real_program_knows_every_option(words: list[str], tmp_path: Path) -> None:
    """Whatever it cannot do here, a wrong option is an error of usage, which ends it with 2 before anything else."""
    program = find_msb()
    assert program is not None
    options = [word.partition("=")[0] for word in words[1:] if word.startswith("--") and word != "--"]
    said = subprocess.run(
        [str(program), words[0], "--help"], capture_output=True, text=True, timeout=30, env={"MSB_HOME": str(tmp_path)}
    ).stdout  # fmt: skip
    assert not [option for option in options if option not in said]


def test_the_fake_s_words_are_the_driver_s() -> None:
    """It refuses what it does not know, so it cannot agree to a misspelt option."""
    wrong = subprocess.run(
        [sys.executable, str(FAKE), "create", "--nme=x"], capture_output=True, env={"MSB_HOME": "/tmp"}
    )
    assert wrong.returncode == 2
