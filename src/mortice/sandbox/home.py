"""Where sandboxes keep their books, and writing there so that a crash leaves the old or the new, never half."""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mortice.specs.cache import cache_folder


def default_home() -> Path:
    """$MORTICE_SANDBOX_HOME, or mortice/sandbox under the user's state folder."""
    home = os.environ.get("MORTICE_SANDBOX_HOME")
    if home:
        return Path(home).absolute()
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mortice" / "sandbox"


def images_folder() -> Path:
    """Programs and root file systems that `mortice sandbox setup` made; shared by all homes of this user."""
    return cache_folder() / "sandbox"


class Home:
    """The folders of one home. Box ids are short: socket paths have 108 bytes."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_home()
        self.boxes = self.root / "boxes"
        self.snapshots = self.root / "snapshots"
        self.runs = self.root / "runs"
        self.audit = self.root / "audit"
        self.runsc = self.root / "runsc"
        for folder in (self.boxes, self.snapshots, self.runs, self.audit, self.runsc):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def box(self, box_id: str) -> Path:
        return self.boxes / box_id

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Names are given out and taken under this lock, across processes."""
        with (self.root / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(6)


def write_whole(path: Path, value: Any) -> None:
    """Write JSON beside, sync, rename over, sync the folder."""
    _written_beside(path, value).rename(path)
    sync_folder(path.parent)


def write_once(path: Path, value: Any) -> None:
    """As `write_whole`, for a file that one writer alone may make. Raises FileExistsError for every other."""
    part = _written_beside(path, value)
    try:
        os.link(part, path)
    finally:
        part.unlink()
    sync_folder(path.parent)


def _written_beside(path: Path, value: Any) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(3)}.part")
    with part.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(value), indent=1))
        file.flush()
        os.fsync(file.fileno())
    return part


class NewerVersion(ValueError):
    """A file of our books that a later version of this software wrote."""


def digest_of(value: msgspec.Struct) -> str:
    """SHA-256 over every field but `digest`. A `version` of 0 is that of files from before versions were written down."""
    fields = msgspec.to_builtins(value)
    fields["digest"] = ""
    if not fields["version"]:
        del fields["version"]
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def digest_of_json(data: bytes) -> str:
    """The same over what was written: fields that this version has and the writer had not change nothing."""
    fields = msgspec.json.decode(data, type=dict[str, Any]) | {"digest": ""}
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def check_version(data: bytes, newest: int) -> None:
    """Raises NewerVersion if this JSON says it is of a later version than `newest`; other damage is for the decoder."""
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
    except msgspec.DecodeError:
        return
    if version > newest:
        raise NewerVersion(f"it is of version {version}, and this software reads up to {newest}: update it")


class _Versioned(msgspec.Struct):
    version: int = 0


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
