"""The books of a home's sandboxes: who is called what, made from what, and alive."""

import os
import re
import time
from pathlib import Path

import msgspec

from mortice.sandbox.contract import BoxInfo, SandboxBusy, SandboxNotFound, SandboxSpec, Strength
from mortice.sandbox.home import Home, new_id
from mortice.sandbox.images import find_image
from mortice.sandbox.machine import Backend, alive, started_at
from mortice.sandbox.record import BoxRecord, Lease
from mortice.specs.errors import RequestError


class Books:
    """Names are given out and taken under the home's lock, across processes."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def claim(
        self, backend: Backend, spec: SandboxSpec, name: str | None, *, keep: bool, parent: str | None,
        spare: bool = False,
    ) -> tuple[BoxRecord, Path, Lease]:  # fmt: skip
        """Take a name and a folder for a new box."""
        box_id = new_id("b")
        name = name or box_id
        with self._home.lock():
            self._check_name(name)
            place = self._home.box(box_id)
            place.mkdir(mode=0o700)
            lease = Lease(place)
            image = find_image(spec.image)
            record = BoxRecord(
                id=box_id, name=name, backend=backend.name, strength=str(backend.strength), state="creating", spec=spec,
                generation=1, created_at=time.time(), keep=keep, spare=spare, parent_snapshot=parent,
                image_digest=image.digest if image else "",
            )  # fmt: skip
            self.write(record, place)
        return record, place, lease

    def adopt(self, record: BoxRecord, place: Path, name: str | None, *, keep: bool, parent: str) -> None:
        """What `claim` says of a new box, said of a spare one."""
        with self._home.lock():
            self._check_name(name or record.id, but=record.id)
            record.name, record.keep, record.parent_snapshot = name or record.id, keep, parent
            record.spare, record.created_at = False, time.time()
            self.write(record, place)

    def _check_name(self, name: str, *, but: str | None = None) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise RequestError(
                "a name has letters, digits, dots, dashes and underscores, at most 63", param="name"
            )
        if any(r.name == name and r.id != but for r in self.records()):
            raise SandboxBusy(
                f"a sandbox called {name!r} exists; destroy it or take another name", param="name"
            )

    def write(self, record: BoxRecord, place: Path) -> None:
        """Of a living machine. They need not survive power loss: the machine does not."""
        part = place / f".box.{os.getpid()}"
        part.write_bytes(msgspec.json.encode(record))
        part.rename(place / "box.json")

    def records(self) -> list[BoxRecord]:
        """Of every box, in no order."""
        found = []
        for path in self._home.boxes.glob("*/box.json"):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=BoxRecord))
            except (OSError, msgspec.DecodeError):
                continue
        return found

    def find(self, name: str) -> BoxRecord:
        """By name or id. Raises SandboxNotFound."""
        for record in self.records():
            if name in (record.name, record.id):
                return record
        raise SandboxNotFound(f"there is no sandbox {name!r} (mortice sandbox ls)", param="name")

    def infos(self) -> list[BoxInfo]:
        """Oldest first; one whose machine is gone is `lost`."""
        found = [_info(record) for record in self.records() if not record.spare]
        return sorted(found, key=lambda info: info.created_at)


def _info(record: BoxRecord) -> BoxInfo:
    state = record.state
    if state in ("ready", "paused") and not is_alive(record):
        state = "lost"
    return BoxInfo(
        id=record.id, name=record.name, backend=record.backend, strength=Strength(record.strength), state=state,
        generation=record.generation, created_at=record.created_at, parent_snapshot=record.parent_snapshot,
        last_snapshot=record.last_snapshot, keep=record.keep,
    )  # fmt: skip


def is_alive(record: BoxRecord) -> bool:
    """Whether the process that was its machine still is."""
    return record.pid != 0 and alive(record.pid) and started_at(record.pid) == record.started
