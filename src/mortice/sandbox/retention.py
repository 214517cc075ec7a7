"""Which snapshots may go: old ones that no sandbox, no epoch and no journal refers to."""

from collections.abc import Iterable

from mortice.sandbox.epoch_files import read_epochs
from mortice.sandbox.home import Home
from mortice.sandbox.record import BoxRecord
from mortice.sandbox.snapshots import Manifest

JOURNALLED = "agent-"
"""How the names of sandboxes begin whose snapshots a journal elsewhere refers to; its keeper removes them."""


def referred(home: Home, records: Iterable[BoxRecord]) -> dict[str, str]:
    """By snapshot, who refers to it. Epochs of a later version raise SnapshotRefused: what they need cannot be told."""
    found: dict[str, str] = {}
    for run in sorted(home.runs.iterdir()):
        for epoch in read_epochs(home, run.name):
            found[epoch.snapshot] = f"epoch {epoch.number} of run {epoch.run}"
    for record in records:
        for snapshot in (record.parent_snapshot, record.last_snapshot):
            if snapshot is not None:
                found[snapshot] = f"sandbox {record.name}"
    return found


def prunable(
    manifests: Iterable[Manifest], referred: Iterable[str], *, older_than_s: float, now_s: float
) -> list[Manifest]:
    """Those to remove, in their order."""
    kept = set(referred)
    return [
        m for m in manifests
        if m.id not in kept and not m.name.startswith(JOURNALLED) and now_s - m.created_at > older_than_s
    ]  # fmt: skip
