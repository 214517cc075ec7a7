"""What a browser sees of runs: the list, and the timeline of one. Read from the store when asked; nothing is run here."""

import asyncio
from contextlib import closing

import msgspec

from mortice.agent.durable import RunRecord
from mortice.agent.durable_dbos import DbosReader
from mortice.agent.home import Home
from mortice.agent.record import Timeline, pending, timeline
from mortice.agent.timeline_page import list_page, page
from mortice.specs.errors import NotFound

MOST_RUNS = 200


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the list. `state` is the run's own word for its end where it has ended."""

    id: str
    state: str
    kind: str
    what: str
    created_s: float
    updated_s: float
    of: str  # its parent, or the run it branched off


async def draw_runs(home: Home) -> str:
    """The latest runs as a page."""
    return await asyncio.to_thread(lambda: list_page(list_runs(home)))


async def draw_run(home: Home, run_id: str, *, back: str) -> str:
    """The timeline of a run as a page that renews itself while it runs. NotFound if there is none."""
    made = await asyncio.to_thread(read_run, home, run_id)
    return page(made, back=back)


def list_runs(home: Home) -> list[RunRow]:
    try:
        with closing(DbosReader(home.db)) as reader:
            return [_row(run, state_of(reader, run)) for run in reader.runs(limit=MOST_RUNS)]
    except NotFound:  # nothing has been run here yet
        return []


def read_run(home: Home, run_id: str) -> Timeline:
    with closing(DbosReader(home.db)) as reader:
        run = reader.find(run_id)
        return timeline(run, reader.steps(run_id))


def state_of(reader: DbosReader, run: RunRecord) -> str:
    if run.state == "running" and pending(reader.steps(run.id)) is not None:
        return "waiting"
    if run.state == "done" and isinstance(run.output, dict):
        return str(run.output.get("state", "done"))
    return run.state


def _row(run: RunRecord, state: str) -> RunRow:
    payload = run.payload if isinstance(run.payload, dict) else {}
    return RunRow(
        id=run.id,
        state=state,
        kind=run.kind,
        what=str(payload.get("task") or payload.get("workflow") or payload.get("name") or ""),
        created_s=run.created_s,
        updated_s=run.updated_s,
        of=run.parent or run.forked_from or "",
    )
