"""Namespaces, seccomp and Landlock on the host's own kernel: as strong as a container, fast, and only had by name."""

import asyncio
import contextlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Awaitable
from importlib import resources
from pathlib import Path
from typing import Any

from mortice.sandbox import cgroups
from mortice.sandbox.backends.hosted import HostedMachine
from mortice.sandbox.contract import MIB, NotSupported, Probe, SandboxError, SandboxSpec, Strength
from mortice.sandbox.guest.config import ENVIRONMENT, WRITABLE, agent_config
from mortice.sandbox.guest.source import BOOT, agent_code
from mortice.sandbox.images import find_image
from mortice.sandbox.machine import Machine, make_fifos, open_fifos, put_first
from mortice.sandbox.probes import ask_guest

START_TIMEOUT_S = 20.0
FIRST_UID = 1 << 20


class Process:
    """The back end; it cannot save a running machine."""

    name = "process"
    strength = Strength.PROCESS
    version = f"1 on {platform.release()}"
    can_snapshot = False

    async def probe(self) -> Probe:
        if os.geteuid() != 0:
            return self._refuse("needs root, for namespaces and control groups", "run as root")
        if platform.machine() != "x86_64":
            return self._refuse("its system call filter is written for x86-64", "use gvisor")
        if find_image("base") is None:
            return self._refuse("there is no root file system for guests", "mortice sandbox setup")
        with tempfile.TemporaryDirectory(prefix="mortice-probe-") as place:
            return await ask_guest(self, Path(place), round_trip=False)

    def _refuse(self, why: str, remedy: str) -> Probe:
        return Probe(backend=self.name, works=False, strength=self.strength, why_not=why, remedy=remedy)

    async def start(
        self, box_id: str, place: Path, spec: SandboxSpec, trace: dict[str, Any] | None
    ) -> Machine:
        image = find_image(spec.image)
        if image is None:
            raise SandboxError(
                f"there is no image {spec.image!r}; `mortice sandbox setup` makes the base image"
            )
        make_fifos(place)
        stage = place / "root"
        stage.mkdir()
        base = FIRST_UID + 65536 * (int(box_id[1:7], 16) % 16384)
        limits = spec.limits
        plan = {
            "root": str(image.root),
            "stage": str(stage),
            "hostname": box_id,
            "base_uid": base,
            "pid_file": str(place / "pid"),
            "groups": [
                str(p)
                for p in cgroups.create(box_id, limits.memory_bytes, limits.num_processes + 8, limits.cpus)
            ],
            "tmpfs": [
                (
                    path,
                    limits.disk_bytes if path not in ("/run", "/dev/shm") else 16 * MIB,
                    mode,
                    base + owner,
                )
                for path, mode, owner in WRITABLE
            ],
            "writable": [path for path, _, _ in WRITABLE] + ["/dev", "/proc"],
            "env": ENVIRONMENT,
            "argv": ["/usr/bin/python3", "-I", "-S", "-c", BOOT, agent_config(spec)],
        }
        out_fd, in_fd = open_fifos(place)
        put_first(in_fd, agent_code(image))
        os.set_blocking(out_fd, True)
        os.set_blocking(in_fd, True)
        jail = str(resources.files("mortice.sandbox.backends") / "jail.py")
        try:
            with (place / "jail.err").open("wb") as errors:
                starter = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-S", jail, json.dumps(plan),
                    stdin=in_fd, stdout=out_fd, stderr=errors, cwd="/",
                )  # fmt: skip
                code = await asyncio.wait_for(starter.wait(), START_TIMEOUT_S)
        except TimeoutError:
            starter.kill()
            raise SandboxError("the jail was not built in time") from None
        finally:
            os.close(in_fd)
            os.close(out_fd)
        if code != 0:
            said = (place / "jail.err").read_text(errors="replace").strip()[-1000:]
            await cgroups.empty(box_id)
            raise SandboxError(f"the jail could not be built: {said}")
        return Jailed(box_id, place, int((place / "pid").read_text()))

    async def restore(
        self,
        box_id: str,
        place: Path,
        spec: SandboxSpec,
        image: Awaitable[Path],
        trace: dict[str, Any] | None,
    ) -> Machine:
        raise NotSupported(
            "process cannot bring back a saved machine; gvisor and microvm can", param="backend"
        )

    def attach(self, box_id: str, place: Path, pid: int) -> Machine:
        return Jailed(box_id, place, pid)


class Jailed(HostedMachine):
    """The first process of a process namespace; everything inside dies with it."""

    process_name = "first process"

    def open_channel(self) -> tuple[int, int]:
        return open_fifos(self._place)

    async def checkpoint(self, folder: Path) -> None:
        raise NotSupported("process cannot save a running machine; gvisor and microvm can", param="backend")

    async def pause(self) -> None:
        await cgroups.freeze(self._id, frozen=True)

    async def resume(self) -> None:
        await cgroups.freeze(self._id, frozen=False)

    async def remove(self) -> None:
        self._kill()
        with contextlib.suppress(SandboxError):
            await cgroups.freeze(self._id, frozen=False)
        await cgroups.empty(self._id)
