"""What became of a workspace between two snapshots: files created, changed, deleted, renamed. For the log.

The guest's agent lists the folder while nothing of ours runs; guest code cannot speak for it, but the names are guest's own.
"""

from pathlib import Path
from typing import Any

import msgspec

from mortice.sandbox.contract import SandboxError

FILE = "workspace.json"
MAX_NAMED = 256  # of each kind in one record; counts are whole

Entry = tuple[int, int, int]
"""Bytes, modification time in ns, inode."""
Tree = dict[str, Entry]


def read_listing(listed: Any) -> Tree | None:
    """What the agent answered: a list of (path, bytes, time, inode), or None where there were too many."""
    if listed is None:
        return None
    try:
        rows = msgspec.convert(listed, list[tuple[str, int, int, int]])
    except msgspec.ValidationError as error:
        raise SandboxError(f"the guest's list of its workspace cannot be read: {error}") from None
    return {path: (size, mtime, inode) for path, size, mtime, inode in rows}


def changes(before: Tree | None, after: Tree | None) -> dict[str, Any]:
    """The fields of a `files` record. `listed` is false where one side is not known; then nothing is claimed."""
    if before is None or after is None:
        return {"listed": False, "num_files": None if after is None else len(after)}
    created, deleted = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    new_home = {after[path][2]: path for path in created}
    renamed = [(path, new_home[before[path][2]]) for path in deleted if before[path][2] in new_home]
    moved_from, moved_to = {a for a, _ in renamed}, {b for _, b in renamed}
    found: dict[str, list[Any]] = {
        "created": [p for p in created if p not in moved_to],
        "changed": sorted(p for p in after.keys() & before.keys() if after[p] != before[p]),
        "deleted": [p for p in deleted if p not in moved_from],
        "renamed": renamed,
    }
    record: dict[str, Any] = {"listed": True, "num_files": len(after)}
    for kind, paths in found.items():
        record[kind] = paths[:MAX_NAMED]
        record[f"num_{kind}"] = len(paths)
    return record


def save(folder: Path, tree: Tree | None) -> None:
    """Beside the machine's own files, so that a restored machine knows what it started from."""
    (folder / FILE).write_bytes(msgspec.json.encode(tree))


def load(folder: Path) -> Tree | None:
    """What `save` wrote; None where an older version saved the machine."""
    path = folder / FILE
    return msgspec.json.decode(path.read_bytes(), type=Tree | None) if path.exists() else None
