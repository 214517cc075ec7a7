"""What `mortice agent prune` does."""

import asyncio
import time
from contextlib import closing

import msgspec
import typer

from mortice.agent.durable_dbos import DbosReader
from mortice.agent.home import Home
from mortice.agent.retention import expired, snapshots_of
from mortice.cli.sandbox_snapshots import seconds
from mortice.sandbox import Sandboxes


def prune_snapshots(place: Home, *, older_than: str, dry_run: bool, as_json: bool) -> None:
    age_s = seconds(older_than)
    with closing(DbosReader(place.db)) as reader:
        runs = [(run, snapshots_of(reader.steps(run.id))) for run in reader.runs(limit=None)]
    old = expired(runs, older_than_s=age_s, now_s=time.time())

    async def work() -> list[str]:
        async with Sandboxes() as boxes:
            there = [m.id for m in boxes.snapshots.list() if m.id in old and m.id not in boxes.referred()]
            for snapshot_id in there if not dry_run else ():
                boxes.remove_snapshot(snapshot_id)
            return there

    removed = asyncio.run(work()) if old else []
    typer.echo(msgspec.json.encode({"snapshots": removed}).decode() if as_json else "\n".join(removed))
