"""What machines have in common that are one process of the host in control groups of their own."""

import contextlib
import os
import signal
from pathlib import Path
from typing import ClassVar

from mortice.sandbox import cgroups
from mortice.sandbox.contract import Reason
from mortice.sandbox.machine import alive


class HostedMachine:
    """The part of `Machine` that is asked of the host and not of the guest. `process_name`: what has ended when it died."""

    process_name: ClassVar[str]

    def __init__(self, box_id: str, place: Path, pid: int) -> None:
        self._id = box_id
        self._place = place
        self.pid = pid

    def park(self) -> None:
        """See `Machine.park`."""
        os.kill(self.pid, signal.SIGSTOP)

    def unpark(self) -> None:
        """See `Machine.park`."""
        if alive(self.pid):
            os.kill(self.pid, signal.SIGCONT)

    def memory_bytes(self) -> int | None:
        """Of all its processes, and of the files that are in memory."""
        return cgroups.memory_bytes(self._id)

    def cpu_seconds(self) -> float | None:
        """See `Machine.cpu_seconds`."""
        return cgroups.cpu_seconds(self._id)

    def cause_of_death(self) -> tuple[Reason, str]:
        """See `Machine.cause_of_death`."""
        if self._met_memory_limit():
            return "oom", "the sandbox used more than its memory limit and was ended"
        return "lost", f"the sandbox's {self.process_name} ended"

    def _met_memory_limit(self) -> bool:
        return cgroups.oom_kills(self._id) > 0

    def _kill(self) -> None:
        if self.pid and alive(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
