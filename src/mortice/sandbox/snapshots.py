"""Snapshots on disk: published whole by manifest, sync and rename, and checked to the last byte before they are used."""

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from mortice.sandbox.contract import SandboxNotFound, SandboxSpec, SnapshotRefused
from mortice.sandbox.home import Home, new_id, sync_folder, write_whole

MANIFEST = "MANIFEST"
MACHINE = "machine"


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
    digest: str = ""

    def computed_digest(self) -> str:
        return hashlib.sha256(
            msgspec.json.encode(msgspec.structs.replace(self, digest=""), order="sorted")
        ).hexdigest()


class Snapshots:
    """The snapshots of a home. A folder without a leading dot that holds a manifest is a snapshot; all else is debris."""

    def __init__(self, home: Home) -> None:
        self._folder = home.snapshots

    def begin(self) -> str:
        """The id of a snapshot that nobody sees before it is published."""
        snapshot_id = new_id("s")
        (self._folder / f".{snapshot_id}").mkdir()
        return snapshot_id

    def machine_folder(self, snapshot_id: str, *, published: bool) -> Path:
        """Where the machine's own files are, or are to be written by `Machine.checkpoint`."""
        return self._folder / (snapshot_id if published else f".{snapshot_id}") / MACHINE

    def publish(self, snapshot_id: str, **fields: Any) -> Manifest:
        """Hash and sync every file, write the manifest, rename: after a crash at any point it exists whole or not at all."""
        folder = self._folder / f".{snapshot_id}"
        entries = []
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entries.append(_entry(folder, path))
        for sub in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            sync_folder(sub)
        manifest = Manifest(
            id=snapshot_id, files=tuple(entries), created_at=time.time(), machine=machine(), **fields
        )
        manifest = msgspec.structs.replace(manifest, digest=manifest.computed_digest())
        write_whole(folder / MANIFEST, manifest)
        folder.rename(self._folder / snapshot_id)
        sync_folder(self._folder)
        return manifest

    def abandon(self, snapshot_id: str) -> None:
        shutil.rmtree(self._folder / f".{snapshot_id}", ignore_errors=True)

    def manifest(self, snapshot_id: str) -> Manifest:
        """The manifest, itself checked. Raises SandboxNotFound or SnapshotRefused."""
        path = self._folder / snapshot_id / MANIFEST
        if "/" in snapshot_id or snapshot_id.startswith(".") or not path.parent.is_dir():
            raise SandboxNotFound(f"there is no snapshot {snapshot_id!r}", param="snapshot")
        try:
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError) as error:
            raise SnapshotRefused(f"snapshot {snapshot_id}: its manifest cannot be read ({error})") from None
        if manifest.digest != manifest.computed_digest():
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

    def remove(self, snapshot_id: str) -> None:
        """Unpublish first, then delete."""
        self.manifest(snapshot_id)
        gone = self._folder / f".gone-{snapshot_id}"
        (self._folder / snapshot_id).rename(gone)
        sync_folder(self._folder)
        shutil.rmtree(gone)

    def sweep(self, *, older_than_s: float = 3600.0) -> int:
        """Delete what was begun and never published."""
        count = 0
        for path in self._folder.glob(".*"):
            if time.time() - path.stat().st_mtime > older_than_s:
                shutil.rmtree(path, ignore_errors=True)
                count += 1
        return count


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


def _entry(folder: Path, path: Path) -> FileEntry:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(fd)
        return FileEntry(path.relative_to(folder).as_posix(), os.fstat(fd).st_size, digest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
