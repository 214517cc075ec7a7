"""microsandbox (the package of that name: libkrun and a guest kernel in one wheel) as a back end, where its guests run.

Its program `msb` boots a guest on our root file system without a network, and carries the standard streams of the guest's
agent: the same agent, lines and limits as in every other back end. What was tried and what was not: the command lines are
those of release 0.7.11, which accepts them; no machine was at hand on which one of its guests ran, so the driver itself is
tested against a program that takes the same words and runs the agent in namespaces. That is why it is chosen only where
its probe, which is this driver starting a guest and making it compute, has passed.
"""

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Awaitable
from importlib import metadata
from pathlib import Path
from typing import Any

from mortice.sandbox import cgroups
from mortice.sandbox.backends.hosted import HostedMachine
from mortice.sandbox.contract import MIB, NotSupported, Probe, SandboxError, SandboxSpec, Strength
from mortice.sandbox.guest.config import ENVIRONMENT, WRITABLE, agent_config
from mortice.sandbox.guest.source import BOOT, agent_code
from mortice.sandbox.images import find_image
from mortice.sandbox.kvm import probe_kvm
from mortice.sandbox.machine import Machine, make_fifos, open_fifos, put_first
from mortice.sandbox.probes import ask_guest

PACKAGE = "microsandbox"
INSTEAD = "microvm, which is the same wall"
GUEST_KERNEL = 96 * MIB  # what the guest's kernel and agents need beside the limit
MONITOR_BESIDE = 256 * MIB
NUM_HOST_THREADS = 512
CREATE_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 30.0


class Microsandbox:
    """The back end. No snapshots: `msb` has its own, which were never seen to work with our agent inside."""

    name = PACKAGE
    strength = Strength.MICROVM
    can_snapshot = False

    def __init__(self) -> None:
        try:
            self.version = metadata.version(PACKAGE)
        except metadata.PackageNotFoundError:
            self.version = "missing"

    async def probe(self) -> Probe:
        """Hardware, package, and then a guest that has to compute."""
        finding = await asyncio.to_thread(probe_kvm)
        if not finding.hardware:
            return self._refuse(
                f"kvm probe: {finding.why_not}",
                "a machine with hardware virtualisation; gvisor works without",
            )
        if os.geteuid() != 0:
            return self._refuse("needs root, for control groups", "run as root")
        if find_msb() is None:
            return self._refuse(
                f"the package {PACKAGE} is not installed", "pip install 'mortice[microsandbox]'"
            )
        if find_image("base") is None:
            return self._refuse("there is no root file system for guests", "mortice sandbox setup")
        with tempfile.TemporaryDirectory(prefix="mortice-probe-") as place:
            return await ask_guest(self, Path(place), round_trip=False)

    def _refuse(self, why: str, remedy: str) -> Probe:
        return Probe(
            backend=self.name, works=False, strength=self.strength, why_not=why, remedy=remedy, version=self.version
        )  # fmt: skip

    async def start(
        self, box_id: str, place: Path, spec: SandboxSpec, trace: dict[str, Any] | None
    ) -> Machine:
        image = find_image(spec.image)
        if image is None:
            raise SandboxError(
                f"there is no image {spec.image!r}; `mortice sandbox setup` makes the base image"
            )
        limits = spec.limits
        memory = limits.memory_bytes + GUEST_KERNEL
        groups = cgroups.create(box_id, memory + MONITOR_BESIDE, NUM_HOST_THREADS, limits.cpus)
        machine = MsbMachine(box_id, place, 0)
        try:
            await msb(
                place, create_arguments(box_id, image.root, spec), timeout_s=CREATE_TIMEOUT_S, join=groups
            )
            machine.pid = _relay(box_id, place, groups, agent_config(spec, apart=True), agent_code(image))
        except BaseException:
            await machine.remove()
            raise
        return machine

    async def restore(
        self,
        box_id: str,
        place: Path,
        spec: SandboxSpec,
        image: Awaitable[Path],
        trace: dict[str, Any] | None,
    ) -> Machine:
        raise NotSupported(_NO_SNAPSHOTS, param="backend")

    def attach(self, box_id: str, place: Path, pid: int) -> Machine:
        return MsbMachine(box_id, place, pid)


class MsbMachine(HostedMachine):
    """One sandbox of msb; its process here is the one that carries the agent's streams."""

    process_name = "relay to the guest"

    def open_channel(self) -> tuple[int, int]:
        return open_fifos(self._place)

    async def checkpoint(self, folder: Path) -> None:
        raise NotSupported(_NO_SNAPSHOTS, param="backend")

    def park(self) -> None:
        """The monitor sleeps by itself when its guest does; stopping it would break its timers."""

    def unpark(self) -> None: ...

    async def pause(self) -> None:
        await msb(self._place, ["pause", "--quiet", self._id])

    async def resume(self) -> None:
        await msb(self._place, ["resume", "--quiet", self._id])

    async def remove(self) -> None:
        with contextlib.suppress(SandboxError):  # it may be gone; what is left of it is in its control groups
            await msb(self._place, ["remove", "--force", "--quiet", self._id])
        self._kill()
        await cgroups.empty(self._id)


def find_msb() -> Path | None:
    """The program inside the wheel."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "_bundled" / "bin" / "msb"
    return program if program.exists() else None


def create_arguments(box_id: str, root: Path, spec: SandboxSpec) -> list[str]:
    """`msb create` of a guest on a folder as its root, with bounded folders in memory and no network card."""
    limits = spec.limits
    folders = [
        f"--tmpfs={path}:{(limits.disk_bytes if path not in ('/run', '/dev/shm') else 16 * MIB) // MIB}M"
        for path, _, _ in WRITABLE
    ]
    return [
        "create", "--quiet", "--no-net", "--pull=never", f"--name={box_id}", f"--hostname={box_id}",
        f"--memory={(limits.memory_bytes + GUEST_KERNEL) // MIB}M", f"--cpus={max(1, round(limits.cpus))}",
        *folders, str(root),
    ]  # fmt: skip


def exec_arguments(box_id: str, config: str) -> list[str]:
    """`msb exec` of the agent as the guest's root, its streams carried as they are."""
    environment = [f"--env={name}={value}" for name, value in ENVIRONMENT.items()]
    agent = ["/usr/bin/python3", "-I", "-S", "-c", PREPARE + BOOT, config]
    return ["exec", "--quiet", "--stream", "--user=0", *environment, box_id, "--", *agent]


PREPARE = "import os\n" + "".join(
    f"os.chmod({path!r}, 0o{mode}); os.chown({path!r}, {owner}, {owner})\n" for path, mode, owner in WRITABLE
)
"""Who owns the folders in memory; `msb` mounts them as root's."""


def _relay(box_id: str, place: Path, groups: list[Path], config: str, code: bytes) -> int:
    """Start the process that carries the agent's streams over the box's named pipes; it outlives ours."""
    make_fifos(place)
    out_fd, in_fd = open_fifos(place)
    put_first(in_fd, code)
    os.set_blocking(out_fd, True)
    os.set_blocking(in_fd, True)
    try:
        with (place / "msb.err").open("ab") as errors:
            return subprocess.Popen(
                [*cgroups.joining(groups), *_command(exec_arguments(box_id, config))],
                stdin=in_fd, stdout=out_fd, stderr=errors, cwd=place, env=_environment(place), start_new_session=True,
            ).pid  # fmt: skip
    finally:
        os.close(in_fd)
        os.close(out_fd)


async def msb(
    place: Path, arguments: list[str], *, timeout_s: float = CALL_TIMEOUT_S, join: list[Path] | None = None
) -> None:
    """One call, whose books lie in the box's own folder. Raises SandboxError with what it said."""
    prefix = cgroups.joining(join) if join else []
    with (place / "msb.err").open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *prefix, *_command(arguments), stdin=asyncio.subprocess.DEVNULL, stdout=errors, stderr=errors, cwd=place,
            env=_environment(place), start_new_session=True,
        )  # fmt: skip
        try:
            code = await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()
            raise SandboxError(f"msb {arguments[0]} did not end within {timeout_s:g} s") from None
    if code != 0:
        said = " ".join((place / "msb.err").read_text(errors="replace").split())[-500:]
        raise SandboxError(f"msb {arguments[0]} ended with {code}: {said or 'it said nothing'}")


def _command(arguments: list[str]) -> list[str]:
    program = find_msb()
    if program is None:
        raise SandboxError(f"the package {PACKAGE} is not installed: pip install 'mortice[microsandbox]'")
    return [str(program), *arguments]


def _environment(place: Path) -> dict[str, str]:
    return {"PATH": os.defpath, "HOME": str(place), "MSB_HOME": str(place / "msb")}


_NO_SNAPSHOTS = "microsandbox cannot save a running machine through this driver; gvisor and microvm can"
