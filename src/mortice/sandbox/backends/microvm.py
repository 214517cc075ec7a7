"""A guest kernel under hardware virtualisation: the probe, and refusal by name; the driver is not written yet."""

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from mortice.sandbox.contract import BackendUnavailable, Probe, SandboxSpec, Strength
from mortice.sandbox.kvm import probe_kvm
from mortice.sandbox.machine import Machine


class MicroVM:
    """A guest kernel under hardware virtualisation. Its probe runs two guests on /dev/kvm; there is no driver behind it yet,
    so it refuses on every machine, and says whether this one could."""

    name = "microvm"
    strength = Strength.MICROVM
    version = "none"
    can_snapshot = False

    async def probe(self) -> Probe:
        finding = probe_kvm()
        if not finding.hardware:
            return self._refuse(
                f"kvm probe: {finding.why_not}",
                "a machine with hardware virtualisation; gvisor works without",
            )
        return self._refuse(
            "kvm probe: hardware virtualisation works, and no driver for it is in this version", "use gvisor"
        )

    def _refuse(self, why: str, remedy: str) -> Probe:
        return Probe(backend=self.name, works=False, strength=self.strength, why_not=why, remedy=remedy)

    async def start(
        self, box_id: str, place: Path, spec: SandboxSpec, trace: dict[str, Any] | None
    ) -> Machine:
        raise BackendUnavailable("microvm has no driver in this version", param="backend")

    async def restore(
        self,
        box_id: str,
        place: Path,
        spec: SandboxSpec,
        image: Awaitable[Path],
        trace: dict[str, Any] | None,
    ) -> Machine:
        raise BackendUnavailable("microvm has no driver in this version", param="backend")

    def attach(self, box_id: str, place: Path, pid: int) -> Machine:
        raise BackendUnavailable("microvm has no driver in this version", param="backend")
