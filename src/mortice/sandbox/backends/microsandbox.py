"""microsandbox (the package of that name: libkrun and a kernel in one wheel): asked, and refused with what it said.

There is no driver for it. Its wall is `microvm`'s, a guest kernel under the same KVM, and no machine was at hand on which
one of its guests ran; a driver that was never run would be a promise. What is here tells whether its guests run.
"""

import asyncio
import importlib.util
import os
import tempfile
import time
from importlib import metadata
from pathlib import Path

from mortice.sandbox.contract import Probe, Strength
from mortice.sandbox.images import find_image
from mortice.sandbox.kvm import probe_kvm

PACKAGE = "microsandbox"
GUEST_TIMEOUT_S = 60.0
INSTEAD = "microvm, which is the same wall"


class Microsandbox:
    """The probe. `works` is never true: see above."""

    name = "microsandbox"
    strength = Strength.MICROVM

    @property
    def version(self) -> str:
        try:
            return metadata.version(PACKAGE)
        except metadata.PackageNotFoundError:
            return "missing"

    async def probe(self) -> Probe:
        """Hardware, package, and then a guest that has to compute."""
        finding = await asyncio.to_thread(probe_kvm)
        if not finding.hardware:
            return self._refuse(
                f"kvm probe: {finding.why_not}",
                "a machine with hardware virtualisation; gvisor works without",
            )
        program, image = find_msb(), find_image("base")
        if program is None:
            return self._refuse(f"the package {PACKAGE} is not installed", f"pip install {PACKAGE}")
        if image is None:
            return self._refuse("there is no root file system for guests", "mortice sandbox setup")
        began = time.monotonic()
        problem = await run_guest(program, image.root)
        if problem is not None:
            return self._refuse(f"the probe's guest failed: {problem}", INSTEAD)
        details = {"start_ms": f"{(time.monotonic() - began) * 1e3:.0f}"}
        return self._refuse("its guest ran and answered, and there is no driver for it", INSTEAD, details)

    def _refuse(self, why: str, remedy: str, details: dict[str, str] | None = None) -> Probe:
        return Probe(
            backend=self.name, works=False, strength=self.strength, why_not=why, remedy=remedy,
            version=self.version, details=details or {},
        )  # fmt: skip


def find_msb() -> Path | None:
    """The program inside the wheel."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "_bundled" / "bin" / "msb"
    return program if program.exists() else None


async def run_guest(program: Path, root: Path, *, timeout_s: float = GUEST_TIMEOUT_S) -> str | None:
    """Have a guest without a network compute; what went wrong, or None. Its books go to a folder that is deleted."""
    with tempfile.TemporaryDirectory(prefix="mortice-probe-") as place:
        process = await asyncio.create_subprocess_exec(
            str(program), "run", "--no-net", "--no-stdin", "--no-tty", str(root), "--",
            "/usr/bin/python3", "-c", "print(6*7)",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {"MSB_HOME": place}, start_new_session=True,
        )  # fmt: skip
        try:
            said = (await asyncio.wait_for(process.communicate(), timeout_s))[0].decode(errors="replace")
        except TimeoutError:
            os.killpg(process.pid, 9)
            await process.wait()
            return f"no answer within {timeout_s:g} s"
    if process.returncode == 0 and said.split()[-1:] == ["42"]:
        return None
    return " ".join(said.split())[-500:] or f"it ended with {process.returncode} and said nothing"
