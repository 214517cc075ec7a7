"""Which snapshots of runs may go, and taking them away: those to which only runs refer that ended long enough ago."""

import time
from collections.abc import Iterable, Sequence
from contextlib import closing

import msgspec

from mortice.agent.durable import RunRecord, StepRecord
from mortice.agent.durable_dbos import DbosReader
from mortice.agent.home import Home
from mortice.obs.log import Log
from mortice.sandbox import Sandboxes
from mortice.sandbox.retention import JOURNALLED, MOST_AT_ONCE, Rules, prunable, read_rules
from mortice.specs.errors import MorticeError

TIDY_EVERY_S = 3600.0
_log = Log("agent")


def snapshots_of(steps: Iterable[StepRecord]) -> set[str]:
    """Every snapshot a journal refers to."""
    outputs = (step.output for step in steps if isinstance(step.output, dict))
    return {str(output["epoch"]) for output in outputs if isinstance(output.get("epoch"), str)}


def ended(runs: Sequence[tuple[RunRecord, set[str]]]) -> dict[str, float]:
    """Snapshots that no run needs to go on, and when the last run ended that has one: from then on it is for branches."""
    needed, found = set[str](), dict[str, float]()
    for run, ids in runs:
        if run.state not in ("done", "failed", "cancelled"):
            needed |= ids
        for snapshot in ids:
            found[snapshot] = max(found.get(snapshot, 0.0), run.updated_s)
    return {snapshot: at for snapshot, at in found.items() if snapshot not in needed}


def prune(
    place: Home, boxes: Sandboxes, rules: Rules, *, dry_run: bool = False, at_most: int | None = None
) -> list[str]:
    """Remove what the rules do not keep of the snapshots that this home's journal names; those removed, or to be removed.
    Ages are from the end of the last run that has a snapshot. NotFound where nothing was run here."""
    with closing(DbosReader(place.db)) as reader:
        at = ended([(run, snapshots_of(reader.steps(run.id))) for run in reader.runs(limit=None)])
    needed = boxes.retention.referred()
    free = [
        msgspec.structs.replace(m, created_at=at[m.id])
        for m in boxes.snapshots.list()
        if m.id in at and m.id not in needed
    ]
    old = prunable(free, rules, now_s=time.time(), size_of=boxes.snapshots.disk_bytes)[:at_most]
    return [manifest.id for manifest in old if dry_run or boxes.retention.try_remove(manifest.id)]


def tidy(place: Home, boxes: Sandboxes) -> None:
    """Prune by the rules of the sandboxes' home, once an hour and a few at once. A journal is only read where some snapshot
    of a run is old enough, or all together are large enough. Never the failure of who calls it."""
    note = place.folder / "pruned"
    if note.exists() and time.time() - note.stat().st_mtime < TIDY_EVERY_S:
        return
    try:
        note.touch()
        rules = read_rules(boxes.home)
        ours = [m for m in boxes.snapshots.list() if m.name.startswith(JOURNALLED)]
        if prunable(ours, rules, now_s=time.time(), size_of=boxes.snapshots.disk_bytes):
            prune(place, boxes, rules, at_most=MOST_AT_ONCE)
    except (MorticeError, OSError) as error:
        _log.warning("old snapshots could not be removed", why=str(error))
