"""Snapshots on disk: published whole by manifest, sync and rename, and checked to the last byte before they are used."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from mortice.sandbox.contract import SandboxNotFound, SandboxSpec, SnapshotRefused
from mortice.sandbox.epoch import MachineState
from mortice.sandbox.home import (
    Home,
    NewerVersion,
    check_version,
    digest_of,
    digest_of_json,
    new_id,
    sync_folder,
    write_whole,
)

MANIFEST = "MANIFEST"
MACHINE = "machine"
VERSION = 1  # of manifests that are written; older ones are read


class FileEntry(msgspec.Struct, frozen=True):
    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a snapshot is and what it needs to live again. `audit_seq` and `audit_head` are of the box's chain when it was
    taken; `digest` is over all other fields."""

    id: str
    box: str
    name: str
    parent: str | None
    epoch: int | None
    backend: str
    backend_version: str
    machine: str
    image_digest: str
    agent_digest: str
    spec: SandboxSpec
    files: tuple[FileEntry, ...]
    created_at: float
    audit_chain: str
    audit_seq: int
    audit_head: str
    version: int = 0
    digest: str = ""

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def state(self) -> MachineState:
        """The machine's share in an epoch."""
        return MachineState(
            snapshot=self.id,
            digest=self.digest,
            chain=self.audit_chain,
            seq=self.audit_seq,
            head=self.audit_head,
        )


class Snapshots:
    """The snapshots of a home. A folder without a leading dot that holds a manifest is a snapshot; all else is debris."""

    def __init__(self, home: Home) -> None:
        self._folder = home.snapshots
        self._begun: dict[str, int] = {}

    def begin(self) -> str:
        """The id of a snapshot that nobody sees before it is published. Its folder is locked while this process lives."""
        snapshot_id = new_id("s")
        folder = self._folder / f".{snapshot_id}"
        with self._unswept():
            folder.mkdir()
            self._begun[snapshot_id] = _locked(folder)
        return snapshot_id

    def machine_folder(self, snapshot_id: str, *, published: bool) -> Path:
        """Where the machine's own files are, or are to be written by `Machine.checkpoint`."""
        return self._folder / (snapshot_id if published else f".{snapshot_id}") / MACHINE

    def publish(self, snapshot_id: str, *, cached: bool, **fields: Any) -> Manifest:
        """Hash and sync every file, write the manifest, rename: after a crash at any point it exists whole or not at all.

        `cached`: it will be read again at once. Else its pages are given back to the host: they are charged to the sandbox
        whose kernel wrote them, and sixty snapshots would fill its memory limit with them.
        """
        folder = self._folder / f".{snapshot_id}"
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        with ThreadPoolExecutor(min(8, len(paths))) as pool:  # one file's sync waits while another is hashed
            entries = list(pool.map(lambda path: _entry(folder, path, cached=cached), paths))
        for sub in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            sync_folder(sub)
        manifest = Manifest(
            id=snapshot_id,
            files=tuple(entries),
            created_at=time.time(),
            machine=machine(),
            version=VERSION,
            **fields,
        )
        manifest = msgspec.structs.replace(manifest, digest=digest_of(manifest))
        write_whole(folder / MANIFEST, manifest)
        folder.rename(self._folder / snapshot_id)
        sync_folder(self._folder)
        self._let_go(snapshot_id)
        return manifest

    def abandon(self, snapshot_id: str) -> None:
        shutil.rmtree(self._folder / f".{snapshot_id}", ignore_errors=True)
        self._let_go(snapshot_id)

    def _let_go(self, snapshot_id: str) -> None:
        fd = self._begun.pop(snapshot_id, None)
        if fd is not None:
            os.close(fd)

    @contextlib.contextmanager
    def _unswept(self) -> Iterator[None]:
        """A folder that is made and not yet locked looks abandoned; nobody may look in between."""
        fd = _locked(self._folder)
        try:
            yield
        finally:
            os.close(fd)

    def manifest(self, snapshot_id: str) -> Manifest:
        """The manifest, itself checked. Raises SandboxNotFound or SnapshotRefused."""
        path = self._folder / snapshot_id / MANIFEST
        if "/" in snapshot_id or snapshot_id.startswith(".") or not path.parent.is_dir():
            raise SandboxNotFound(f"there is no snapshot {snapshot_id!r}", param="snapshot")
        try:
            data = path.read_bytes()
            check_version(data, VERSION)
            manifest = msgspec.json.decode(data, type=Manifest)
        except NewerVersion as error:
            raise SnapshotRefused(f"snapshot {snapshot_id}: {error}") from None
        except (OSError, msgspec.DecodeError) as error:
            raise SnapshotRefused(f"snapshot {snapshot_id}: its manifest cannot be read ({error})") from None
        if manifest.digest != digest_of_json(data):
            raise SnapshotRefused(f"snapshot {snapshot_id}: its manifest was altered")
        return manifest

    def check_origin(self, manifest: Manifest, *, backend_version: str, image_digest: str) -> None:
        """Raises SnapshotRefused for a snapshot of another back end, root file system or processor than there are here."""
        for what, saved, here in (
            ("back end", manifest.backend_version, backend_version),
            ("root file system", manifest.image_digest, image_digest),
            ("machine", manifest.machine, machine()),
        ):
            if saved != here:
                raise SnapshotRefused(f"snapshot {manifest.id} is from another {what} ({saved}; here {here})")

    def check_files(self, manifest: Manifest) -> Path:
        """The folder of the machine's own files, once every file is what was written. Raises SnapshotRefused."""
        folder = self._folder / manifest.id
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
        listed = {entry.name for entry in manifest.files}
        if found != listed:
            raise SnapshotRefused(
                f"snapshot {manifest.id}: files {sorted(found ^ listed)} are missing or foreign"
            )
        for entry in manifest.files:
            path = folder / entry.name
            if path.is_symlink() or path.stat().st_size != entry.size or _sha256(path) != entry.sha256:
                raise SnapshotRefused(f"snapshot {manifest.id}: {entry.name} is not what was written")
        return folder / MACHINE

    def list(self) -> list[Manifest]:
        """Published snapshots, oldest first; damaged ones are left out."""
        found = []
        for path in self._folder.iterdir():
            if not path.name.startswith("."):
                try:
                    found.append(self.manifest(path.name))
                except SnapshotRefused:
                    continue
        return sorted(found, key=lambda m: m.created_at)

    def disk_bytes(self, manifest: Manifest) -> int:
        """What it takes of the disk; files of memory have holes."""
        total = 0
        for entry in manifest.files:
            with contextlib.suppress(FileNotFoundError):
                total += (self._folder / manifest.id / entry.name).stat().st_blocks * 512
        return total

    @contextlib.contextmanager
    def held(self, snapshot_id: str) -> Iterator[None]:
        """In use by this process until the end of the block, for all who look with `in_use`."""
        fd = os.open(self._folder / snapshot_id, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    def in_use(self, snapshot_id: str) -> bool:
        """Whether a living process holds it."""
        try:
            os.close(_locked(self._folder / snapshot_id, wait=False))
        except BlockingIOError:
            return True
        return False

    def remove(self, snapshot_id: str) -> None:
        """Unpublish first, then delete."""
        self.manifest(snapshot_id)
        gone = self._folder / f".gone-{snapshot_id}"
        (self._folder / snapshot_id).rename(gone)
        sync_folder(self._folder)
        shutil.rmtree(gone, ignore_errors=True)  # what stays is swept another time

    def sweep(self) -> int:
        """Delete what was begun by processes that are gone. No clock is asked: who still writes holds a lock."""
        count = 0
        with self._unswept():
            for path in self._folder.glob(".*"):
                try:
                    fd = _locked(path, wait=False)
                except (BlockingIOError, FileNotFoundError):
                    continue
                shutil.rmtree(path, ignore_errors=True)
                os.close(fd)
                count += 1
        return count


def _locked(folder: Path, *, wait: bool = True) -> int:
    """A descriptor that holds the folder's lock until it is closed."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(fd)
        raise
    return fd


def machine() -> str:
    """What a saved memory image depends on: processor model and its features."""
    model, flags = "", ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name") and not model:
            model = line.partition(":")[2].strip()
        if line.startswith("flags") and not flags:
            flags = hashlib.sha256(" ".join(sorted(line.partition(":")[2].split())).encode()).hexdigest()[:12]
        if model and flags:
            break
    return f"{model} {flags}"


def _entry(folder: Path, path: Path, *, cached: bool) -> FileEntry:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(fd)
        if not cached:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return FileEntry(path.relative_to(folder).as_posix(), os.fstat(fd).st_size, digest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
