"""What `mortice agent prune` does."""

import asyncio

import msgspec
import typer

from mortice.agent.home import Home
from mortice.agent.retention import prune
from mortice.cli.sandbox_snapshots import given_rules
from mortice.sandbox import Sandboxes


def prune_snapshots(
    place: Home, *, older_than: str | None, keep_bytes: str | None, dry_run: bool, as_json: bool
) -> None:
    async def work() -> list[str]:
        async with Sandboxes() as boxes:
            rules = given_rules(boxes.home, older_than, keep_bytes)
            return prune(place, boxes, rules, dry_run=dry_run)

    removed = asyncio.run(work())
    typer.echo(msgspec.json.encode({"snapshots": removed}).decode() if as_json else "\n".join(removed))
