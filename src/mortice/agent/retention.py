"""Which snapshots of runs may go: those to which only runs refer that ended long enough ago. Pure."""

from collections.abc import Iterable, Sequence

from mortice.agent.durable import RunRecord, StepRecord


def snapshots_of(steps: Iterable[StepRecord]) -> set[str]:
    """Every snapshot a journal refers to."""
    outputs = (step.output for step in steps if isinstance(step.output, dict))
    return {str(output["epoch"]) for output in outputs if isinstance(output.get("epoch"), str)}


def expired(runs: Sequence[tuple[RunRecord, set[str]]], *, older_than_s: float, now_s: float) -> set[str]:
    """Snapshots that are no longer needed. A run that can still be resumed needs its own, whenever it was touched last; one
    that has ended needs them for branches until it is old.
    """
    needed, seen = set[str](), set[str]()
    for run, ids in runs:
        seen |= ids
        if run.state not in ("done", "failed", "cancelled") or now_s - run.updated_s <= older_than_s:
            needed |= ids
    return seen - needed
