"""microsandbox is refused by name, with what its probe saw, and never claimed."""

from pathlib import Path

import pytest

from mortice.sandbox import BackendUnavailable, Sandboxes, SandboxSpec
from mortice.sandbox.backends import microsandbox
from mortice.sandbox.backends.microsandbox import Microsandbox, run_guest
from mortice.sandbox.images import Image
from mortice.sandbox.kvm import KvmFinding


async def test_asked_for_by_name_it_refuses_with_what_the_probe_saw(tmp_path: Path) -> None:
    async with Sandboxes(tmp_path / "home") as boxes:
        with pytest.raises(BackendUnavailable, match="microsandbox: ") as caught:
            await boxes.create(SandboxSpec(backend="microsandbox"))
        probe = await boxes.microsandbox.probe()
        assert (probe.backend, probe.works) == ("microsandbox", False)
        assert probe.why_not in str(caught.value)


async def test_hardware_is_asked_first_then_the_package_then_a_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsandbox, "probe_kvm", lambda: KvmFinding(hardware=False, why_not="no /dev/kvm"))
    assert (await Microsandbox().probe()).why_not == "kvm probe: no /dev/kvm"
    monkeypatch.setattr(microsandbox, "probe_kvm", lambda: KvmFinding(hardware=True))
    monkeypatch.setattr(microsandbox, "find_msb", lambda: None)
    assert (await Microsandbox().probe()).remedy == "pip install microsandbox"
    image = Image(name="base", root=tmp_path, digest="")
    monkeypatch.setattr(microsandbox, "find_image", lambda name: image)
    monkeypatch.setattr(
        microsandbox, "find_msb", lambda: program(tmp_path, "echo 'error: no guest' >&2; exit 1")
    )
    assert (await Microsandbox().probe()).why_not == "the probe's guest failed: error: no guest"
    monkeypatch.setattr(microsandbox, "find_msb", lambda: program(tmp_path, "echo 42"))
    probe = await Microsandbox().probe()
    assert (probe.works, probe.why_not) == (
        False,
        "its guest ran and answered, and there is no driver for it",
    )


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo pulling; echo 42", None),
        ("echo 41", "41"),
        ("echo 42; exit 3", "42"),
        ("exit 3", "it ended with 3 and said nothing"),
        ("sleep 600 & wait", "no answer within 0.3 s"),
    ],
)
async def test_only_a_guest_that_computes_has_run(tmp_path: Path, script: str, said: str | None) -> None:
    assert (
        await run_guest(program(tmp_path, script), tmp_path, timeout_s=0.3 if "sleep" in script else 30)
        == said
    )


def program(folder: Path, script: str) -> Path:
    path = folder / "msb"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path
