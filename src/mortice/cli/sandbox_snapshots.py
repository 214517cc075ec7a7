"""`mortice sandbox snapshots ls | rm | prune`"""

import asyncio
import json
import re
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from mortice.cli.sandbox_boxes import age
from mortice.sandbox import Sandboxes
from mortice.specs.errors import MorticeError, RequestError

snapshots = typer.Typer(
    name="snapshots",
    help="What was saved: look at it, remove it, remove what nobody needs.",
    no_args_is_help=True,
)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Also what a sandbox or an epoch refers to.")]
OlderThan = Annotated[str, typer.Option("--older-than", help="Age, as 90s, 30m, 12h or 7d.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go and remove nothing.")]
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@snapshots.command("ls")
def ls(as_json: Json = False) -> None:
    """Snapshots, oldest first, and who refers to each."""
    boxes = Sandboxes()
    try:
        found, kept = boxes.snapshots.list(), boxes.referred()
    finally:
        asyncio.run(boxes.close())
    rows: list[dict[str, Any]] = [
        {"id": m.id, "of": m.name, "backend": m.backend, "bytes": m.num_bytes, "created_at": m.created_at,
         "kept_by": kept.get(m.id)}
        for m in found
    ]  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("snapshot", "of", "back end", "size", "age", "kept by")
    for row in rows:
        size = f"{row['bytes'] >> 20} MiB"
        table.add_row(
            row["id"], row["of"], row["backend"], size, age(row["created_at"]), row["kept_by"] or ""
        )
    Console().print(table)


@snapshots.command("rm")
def rm(
    ids: Annotated[list[str], typer.Argument(help="Ids of snapshots.")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Remove snapshots by id. One that a sandbox or an epoch refers to is refused; the others go all the same."""

    async def work() -> tuple[list[str], list[MorticeError]]:
        removed, errors = [], list[MorticeError]()
        async with Sandboxes() as boxes:
            for snapshot_id in ids:
                try:
                    boxes.remove_snapshot(snapshot_id, force=force)
                    removed.append(snapshot_id)
                except MorticeError as error:
                    errors.append(error)
        return removed, errors

    removed, errors = asyncio.run(work())
    _tell(removed, as_json)
    for error in errors:
        raise error


@snapshots.command("prune")
def prune(older_than: OlderThan = "7d", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Remove old snapshots to which no sandbox and no epoch refers. Those of agents' runs: `mortice agent prune`."""
    age_s = seconds(older_than)

    async def work() -> list[str]:
        async with Sandboxes() as boxes:
            return [m.id for m in boxes.prune(older_than_s=age_s, dry_run=dry_run)]

    _tell(asyncio.run(work()), as_json)


def seconds(text: str) -> float:
    """Of an age such as `7d`."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise RequestError(f"{text!r} is no age: 90s, 30m, 12h or 7d", param="older_than")
    return int(found[1]) * _UNITS[found[2]]


def _tell(ids: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(msgspec.to_builtins({"snapshots": ids})))
        return
    for snapshot_id in ids:
        print(snapshot_id)
