"""Empty kernels made ahead of time: a restore or a fork that takes one has half of its work behind it."""

import shutil
from pathlib import Path

import msgspec

from mortice.sandbox.backends.gvisor import RunscMachine
from mortice.sandbox.contract import SandboxSpec
from mortice.sandbox.machine import alive
from mortice.sandbox.record import BoxRecord, Lease


class Spare(msgspec.Struct):
    """A box of our books in which nothing runs yet. Its kernel stands still until it is taken."""

    record: BoxRecord
    place: Path
    lease: Lease
    machine: RunscMachine

    async def remove(self) -> None:
        await self.machine.remove()
        shutil.rmtree(self.place, ignore_errors=True)
        self.lease.release()


class Spares:
    """Those of one supervisor."""

    def __init__(self) -> None:
        self._ready: list[Spare] = []

    def put(self, spare: Spare) -> None:
        spare.machine.park()
        self._ready.append(spare)

    def take(self, spec: SandboxSpec, image_digest: str) -> Spare | None:
        """One that was made for this spec and image, awake; None where there is none."""
        for spare in self._ready:
            fits = spare.record.spec == spec and spare.record.image_digest == image_digest
            if fits and alive(spare.machine.pid):
                self._ready.remove(spare)
                spare.machine.unpark()
                return spare
        return None

    async def close(self) -> None:
        """Remove what nobody took."""
        while self._ready:
            await self._ready.pop().remove()
