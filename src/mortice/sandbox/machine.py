"""What a back end owes the rest of the room: a machine with an agent at the end of two descriptors."""

import fcntl
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Protocol

from mortice.obs.clock import offset_ns
from mortice.sandbox.contract import Probe, Reason, SandboxSpec, Strength


class Machine(Protocol):
    """A started guest. `pid` is the host process whose end is the machine's end."""

    pid: int

    def open_channel(self) -> tuple[int, int]:
        """Descriptors (to read, to write) that the caller owns."""
        ...

    async def checkpoint(self, folder: Path) -> None:
        """Write memory, processes and files into a new folder; the machine runs on."""
        ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    def park(self) -> None:
        """Stop the host's processes of the machine at once; `unpark` lets them go on."""
        ...

    def unpark(self) -> None: ...

    def memory_bytes(self) -> int | None: ...

    def cpu_seconds(self) -> float | None:
        """Charged by the host so far; None where it does not say."""
        ...

    def cause_of_death(self) -> tuple[Reason, str]:
        """Why it died, as far as the host can tell; asked before `remove`."""
        ...

    async def remove(self) -> None:
        """End it and take away all it held on the host; no error if it is gone already."""
        ...


class Backend(Protocol):
    """How machines of one kind come to be. `place` is the box's own folder; what is needed to find the machine again from
    another process is kept there or in the dict that `record` returns."""

    name: str
    strength: Strength
    version: str
    can_snapshot: bool

    async def probe(self) -> Probe: ...

    async def start(
        self, box_id: str, place: Path, spec: SandboxSpec, trace: dict[str, Any] | None
    ) -> Machine: ...

    async def restore(
        self,
        box_id: str,
        place: Path,
        spec: SandboxSpec,
        image: Awaitable[Path],
        trace: dict[str, Any] | None,
    ) -> Machine:
        """`image` is done once every byte of it has been checked: nothing of it may be used before."""
        ...

    def attach(self, box_id: str, place: Path, pid: int) -> Machine:
        """The machine of a box that another process started; pid 0: what is left of one that is gone, to `remove`."""
        ...


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b") ", 1)[1][:1] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False


def started_at(pid: int) -> int | None:
    """Start time of a process in clock ticks since the host's boot: with the pid it names one process for good."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            seen = int(file.read().rsplit(b") ", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return None
    return seen - offset_ns("boottime") * os.sysconf("SC_CLK_TCK") // 1_000_000_000


def open_fifos(place: Path) -> tuple[int, int]:
    """(out, in) of a box's named pipes, opened for both directions so that neither side's death closes them."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(place / "out", flags), os.open(place / "in", flags)


def make_fifos(place: Path) -> None:
    for name in ("in", "out"):
        os.mkfifo(place / name, 0o600)


def put_first(fd: int, data: bytes) -> None:
    """Lay the agent's code into its input before it starts; a pipe holds it whole."""
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, max(65536, len(data)))
    if os.write(fd, data) != len(data):
        raise OSError("the agent's code did not fit into a pipe")
