"""The books of one sandbox: what another process needs to take it over, and whose it is."""

import fcntl
import os
from pathlib import Path
from typing import Literal

import msgspec

from mortice.sandbox.contract import LeaseLost, SandboxBusy, SandboxSpec


class BoxRecord(msgspec.Struct, kw_only=True):
    """What stands in box.json: enough for another process to take the box over."""

    id: str
    name: str
    backend: str
    strength: str
    state: Literal["creating", "ready", "paused", "lost", "destroyed"]
    spec: SandboxSpec
    generation: int
    created_at: float
    image_digest: str = ""
    pid: int = 0
    started: int = 0
    keep: bool = False
    spare: bool = False  # a kernel made ready, and nobody's sandbox yet
    parent_snapshot: str | None = None
    last_snapshot: str | None = None
    next_request: int = 0


class Lease:
    """Ownership of a box by one process: a file lock that falls with its holder, and a number that grows with each."""

    def __init__(self, place: Path) -> None:
        self._path = place / "lease"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise SandboxBusy(
                "another process owns this sandbox; it is free once that one ends", param="name"
            ) from None
        self.token = int(os.pread(self._fd, 32, 0) or b"0") + 1
        os.pwrite(self._fd, str(self.token).encode(), 0)

    def check(self) -> None:
        """Raises LeaseLost if someone took the box (its lease file was replaced, numbered on or is gone)."""
        try:
            now = int(self._path.read_bytes() or b"0")
        except (OSError, ValueError):
            now = -1
        if self._fd < 0 or now != self.token:
            raise LeaseLost("another owner has this sandbox now", param="name")

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
