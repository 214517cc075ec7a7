"""gVisor: a kernel in user space. Starts in a quarter of a second, saves and forks whole sandboxes, needs no KVM.

What `runsc` does that its manual does not say, and that this file works around: a live `exec` poisons a checkpoint (so
the channel is the first process's own standard streams, and there is never an exec); a failed checkpoint without
`-leave-running` leaves a dead sandbox that is still called running. Whatever a living kernel can be asked goes over its
control socket (`sentry`); runsc is only started to start one.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from mortice.sandbox import cgroups
from mortice.sandbox.backends.hosted import HostedMachine
from mortice.sandbox.backends.sentry import Sentry, socket_paths
from mortice.sandbox.contract import MIB, Probe, SandboxError, SandboxSpec, Strength
from mortice.sandbox.guest.config import ENVIRONMENT, WRITABLE, agent_config
from mortice.sandbox.guest.source import BOOT, agent_code
from mortice.sandbox.home import Home
from mortice.sandbox.images import Image, find_image, find_program
from mortice.sandbox.machine import Machine, make_fifos, open_fifos, put_first
from mortice.sandbox.probes import ask_guest

START_TIMEOUT_S = 30.0
ENVIRONMENT_OF_RUNSC = {"PATH": os.defpath}  # its file server would keep all of ours, keys and all
AGENT_CAPABILITIES = [
    "CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SYS_ADMIN",
]  # fmt: skip


class GVisor:
    """The back end; one object serves all boxes of a home."""

    name = "gvisor"
    strength = Strength.GVISOR
    can_snapshot = True

    def __init__(self, home: Home, program: Path | None = None) -> None:
        self._home = home
        self._program = program or find_program("runsc")
        self.version = _digest(self._program) if self._program else "missing"

    async def probe(self) -> Probe:
        """Start a guest, ask it, save it, restore it, ask again."""
        if os.geteuid() != 0:
            return self._refuse("needs root, for control groups and namespaces", "run as root")
        if self._program is None:
            return self._refuse("runsc is not installed", "mortice sandbox setup")
        image = find_image("base")
        if image is None:
            return self._refuse("there is no root file system for guests", "mortice sandbox setup")
        with tempfile.TemporaryDirectory(prefix="mortice-probe-") as place:
            return await ask_guest(self, Path(place), round_trip=True)

    def _refuse(self, why: str, remedy: str) -> Probe:
        return Probe(backend=self.name, works=False, strength=self.strength, why_not=why, remedy=remedy)

    async def start(
        self, box_id: str, place: Path, spec: SandboxSpec, trace: dict[str, Any] | None
    ) -> Machine:
        self._prepare(box_id, place, spec, trace)
        image = find_image(spec.image)
        assert image is not None  # _prepare has seen it
        return await self._launch(box_id, place, ["run", "-detach"], trace, agent_code(image))

    async def restore(
        self,
        box_id: str,
        place: Path,
        spec: SandboxSpec,
        image: Awaitable[Path],
        trace: dict[str, Any] | None,
    ) -> Machine:
        """The empty kernel starts while the image is still being checked; it gets the image only afterwards."""
        machine = await self.start_empty(box_id, place, spec, trace)
        await machine.load(image)
        return machine

    async def start_empty(
        self, box_id: str, place: Path, spec: SandboxSpec, trace: dict[str, Any] | None
    ) -> "RunscMachine":
        """A kernel with nothing in it, that a saved machine can be loaded into: half of a restore."""
        self._prepare(box_id, place, spec, trace)
        return await self._launch(box_id, place, ["create"], trace)

    def attach(self, box_id: str, place: Path, pid: int) -> Machine:
        return RunscMachine(self, box_id, place, pid)

    def _prepare(self, box_id: str, place: Path, spec: SandboxSpec, trace: dict[str, Any] | None) -> None:
        image = find_image(spec.image)
        if image is None:
            raise SandboxError(
                f"there is no image {spec.image!r}; `mortice sandbox setup` makes the base image"
            )
        make_fifos(place)
        (place / "config.json").write_text(json.dumps(_oci(box_id, image, spec)))
        if trace is not None:
            (place / "trace.json").write_text(json.dumps(trace))

    @property
    def runsc_root(self) -> Path:
        return self._home.runsc

    def command(self, place: Path, arguments: list[str], *, traced: bool) -> list[str]:
        flags = [
            str(self._program),
            f"--root={self._home.runsc}",
            "--platform=systrap",
            "--network=none",
            "--overlay2=none",
            "--cpu-num-from-quota",
            f"--log={place / 'runsc.log'}",
        ]
        if traced:
            flags.append(f"--pod-init-config={place / 'trace.json'}")
        return [*flags, *arguments]

    def state_files(self, box_id: str) -> list[Path]:
        """What runsc itself remembers of a sandbox."""
        return [*self._home.runsc.glob(f"{box_id}*"), *socket_paths(box_id, self._home.runsc)]

    async def _launch(
        self,
        box_id: str,
        place: Path,
        verb: list[str],
        trace: dict[str, Any] | None,
        first: bytes = b"",
    ) -> "RunscMachine":
        """The kernel that runsc starts; of one that fails half-way nothing stays."""
        arguments = [*verb, "-pid-file", str(place / "pid"), "-bundle", str(place), box_id]
        out_fd, in_fd = open_fifos(place)
        put_first(in_fd, first)
        os.set_blocking(out_fd, True)
        os.set_blocking(in_fd, True)
        try:
            with cgroups.quick_joins:
                await self._call(place, arguments, traced=trace is not None, stdin=in_fd, stdout=out_fd)
            return RunscMachine(self, box_id, place, self._pid_of(place))
        except BaseException:
            await RunscMachine(self, box_id, place, 0).remove()
            raise
        finally:
            os.close(in_fd)
            os.close(out_fd)

    async def _call(
        self, place: Path, arguments: list[str], *, traced: bool, stdin: int, stdout: int
    ) -> None:
        """Run one runsc command; raises SandboxError with what it said."""
        with (place / "runsc.err").open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *self.command(place, arguments, traced=traced),
                stdin=stdin,
                stdout=stdout,
                stderr=errors,
                cwd=place,
                env=ENVIRONMENT_OF_RUNSC,
            )
            try:
                code = await asyncio.wait_for(process.wait(), START_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                await process.wait()
                raise SandboxError(
                    f"runsc {arguments[0]} did not end within {START_TIMEOUT_S:.0f} s"
                ) from None
        if code != 0:
            said = (place / "runsc.err").read_text(errors="replace")[-2000:].strip()
            raise SandboxError(f"runsc {arguments[0]} ended with {code}: {said or 'it said nothing'}")

    def _pid_of(self, place: Path) -> int:
        return int((place / "pid").read_text())


class RunscMachine(HostedMachine):
    """One sandbox of runsc."""

    process_name = "kernel process"

    def __init__(self, backend: GVisor, box_id: str, place: Path, pid: int) -> None:
        super().__init__(box_id, place, pid)
        self._backend = backend
        self.sentry = Sentry(box_id, backend.runsc_root)

    def open_channel(self) -> tuple[int, int]:
        return open_fifos(self._place)

    async def load(self, image: Awaitable[Path]) -> None:
        """Into a kernel that was started empty; it is ended if that fails."""
        try:
            await self.sentry.restore(await image)
        except BaseException:
            await self.remove()
            raise

    async def checkpoint(self, folder: Path) -> None:
        await self.sentry.checkpoint(folder)

    async def pause(self) -> None:
        await self.sentry.pause()

    async def resume(self) -> None:
        await self.sentry.resume()

    def _met_memory_limit(self) -> bool:
        return super()._met_memory_limit() or cgroups.touched_limit(self._id)

    async def remove(self) -> None:
        """What `runsc delete -force` does, without starting 30 MB for it or waiting a second for someone to reap."""
        self._kill()
        await cgroups.empty(self._id)
        for path in self._backend.state_files(self._id):
            path.unlink(missing_ok=True)


def _oci(box_id: str, image: Image, spec: SandboxSpec) -> dict[str, Any]:
    limits = spec.limits
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}
    ]
    for path, mode, owner in WRITABLE:
        size = limits.disk_bytes if path not in ("/run", "/dev/shm") else 16 * MIB
        options = ["nosuid", "nodev", f"size={size}", f"mode={mode}", f"uid={owner}", f"gid={owner}"]
        mounts.append({"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options})
    return {
        "ociVersion": "1.0.2",
        "hostname": box_id,
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/usr/bin/python3", "-I", "-S", "-c", BOOT, agent_config(spec, apart=True)],
            "env": [f"{name}={value}" for name, value in ENVIRONMENT.items()],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), AGENT_CAPABILITIES),
        },
        "root": {"path": str(image.root), "readonly": True},
        "mounts": mounts,
        "linux": {
            "cgroupsPath": cgroups.group_path(box_id),
            "resources": {
                "memory": {"limit": limits.memory_bytes},
                "pids": {"limit": 8192},
                "cpu": {"period": 100_000, "quota": int(limits.cpus * 100_000)},
            },
            "namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network")],
        },
    }


def _digest(path: Path) -> str:
    """SHA-256 of the program, computed once for a size and time."""
    info = path.stat()
    note = path.with_suffix(".sha256")
    stamp = f"{info.st_size}:{info.st_mtime_ns}:"
    if note.exists() and note.read_text().startswith(stamp):
        return note.read_text().removeprefix(stamp)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with contextlib.suppress(OSError):
        note.write_text(stamp + digest)
    return digest
