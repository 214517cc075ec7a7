"""Which snapshots may go, and taking them away: those that no sandbox, no epoch and no journal refers to, by age or size."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from mortice.obs.audit import AuditLog
from mortice.sandbox.epoch import read_epochs
from mortice.sandbox.home import Home, write_whole
from mortice.sandbox.record import BoxRecord
from mortice.sandbox.snapshots import Manifest, Snapshots
from mortice.specs.errors import MorticeError, RequestError, WrongState

JOURNALLED = "agent-"
"""How the names of sandboxes begin whose snapshots a journal elsewhere refers to; its keeper removes them."""
DAY_S = 86400.0
TIDY_EVERY_S = 60.0
MOST_AT_ONCE = 16  # of those removed beside other work


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long, and how many bytes in all, is kept of what nothing refers to. None: no bound."""

    keep_days: float | None = 30.0
    keep_bytes: int | None = 20 << 30

    def __post_init__(self) -> None:
        for name in ("keep_days", "keep_bytes"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise RequestError("a bound is 0 or more", param=name)


def read_rules(home: Home) -> Rules:
    """Those of the home. RequestError where its file cannot be read: nothing is removed by rules that nobody knows."""
    path = _rules_file(home)
    if not path.exists():
        return Rules()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Rules)
    except msgspec.DecodeError as error:
        raise RequestError(f"{path}: {error}; `mortice sandbox snapshots keep` writes it anew") from None


def write_rules(home: Home, rules: Rules) -> None:
    write_whole(_rules_file(home), rules)


def _rules_file(home: Home) -> Path:
    return home.root / "retention.json"


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
    free: Sequence[Manifest], rules: Rules, *, now_s: float, size_of: Callable[[Manifest], int]
) -> list[Manifest]:
    """Those to remove of what nothing refers to, oldest first: what is too old, then whatever is too much."""
    total = sum(map(size_of, free)) if rules.keep_bytes is not None else 0
    found = []
    for manifest in sorted(free, key=lambda m: m.created_at):
        too_old = rules.keep_days is not None and now_s - manifest.created_at > rules.keep_days * DAY_S
        too_much = rules.keep_bytes is not None and total > rules.keep_bytes
        if too_old or too_much:
            total -= size_of(manifest) if rules.keep_bytes is not None else 0
            found.append(manifest)
    return found


class Retention:
    """Of one home. `records` gives the books of its sandboxes."""

    def __init__(
        self, home: Home, snapshots: Snapshots, audit: AuditLog, records: Callable[[], list[BoxRecord]]
    ) -> None:
        self._home = home
        self._snapshots = snapshots
        self._audit = audit
        self._records = records
        self._next_s = 0.0

    def referred(self) -> dict[str, str]:
        """By snapshot, the sandbox or the epoch that refers to it."""
        return referred(self._home, self._records())

    def remove(self, snapshot_id: str, *, force: bool = False) -> None:
        """Raises WrongState if something refers to it, unless it is forced."""
        with self._home.lock():  # who restores one has it in its books before the lock is free
            self._snapshots.manifest(snapshot_id)
            holder = self.referred().get(snapshot_id)
            if self._snapshots.in_use(snapshot_id):
                holder = "a pool of a living process"
            if holder is not None and not force:
                raise WrongState(f"{holder} refers to snapshot {snapshot_id}", param="snapshot")
            self._snapshots.remove(snapshot_id)
            self._audit.append("snapshot_removed", snapshot=snapshot_id)

    def prune(self, rules: Rules, *, dry_run: bool = False, at_most: int | None = None) -> list[Manifest]:
        """Remove what the rules do not keep; those removed, or to be removed. Journals of agents are not looked at, and
        their snapshots are left alone."""
        needed = self.referred()
        free = [
            m for m in self._snapshots.list()
            if not (m.name.startswith(JOURNALLED) or m.id in needed or self._snapshots.in_use(m.id))
        ]  # fmt: skip
        found = prunable(free, rules, now_s=time.time(), size_of=self._snapshots.disk_bytes)[:at_most]
        return found if dry_run else [manifest for manifest in found if self.try_remove(manifest.id)]

    @property
    def is_due(self) -> bool:
        """Whether `tidy` has something to do: once a minute."""
        return time.monotonic() >= self._next_s

    def tidy(self) -> None:
        """Prune by the home's rules, a few at once: called beside other work, and never its failure."""
        self._next_s = time.monotonic() + TIDY_EVERY_S
        try:
            self.prune(read_rules(self._home), at_most=MOST_AT_ONCE)
        except (MorticeError, OSError) as error:
            self._audit.append("prune_failed", error=str(error)[:500])

    def try_remove(self, snapshot_id: str) -> bool:
        """Whether it was removed and by this call."""
        try:
            self.remove(snapshot_id)
        except MorticeError:  # someone came to need it, or was quicker
            return False
        return True
