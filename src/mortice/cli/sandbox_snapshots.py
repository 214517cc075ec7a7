"""`mortice sandbox snapshots ls | rm | prune | keep`"""

import asyncio
import json
import re
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from mortice.cli.sandbox_boxes import age
from mortice.sandbox import Home, Sandboxes
from mortice.sandbox.retention import DAY_S, Rules, read_rules, write_rules
from mortice.specs.errors import MorticeError, RequestError
from mortice.specs.quantity import quantity

snapshots = typer.Typer(
    name="snapshots",
    help="What was saved: look at it, remove it, remove what nobody needs.",
    no_args_is_help=True,
)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Also what a sandbox or an epoch refers to.")]
OlderThan = Annotated[
    str | None, typer.Option("--older-than", help="Age, as 90s, 30m, 12h or 7d. Default: the home's rule.")
]
KeepDays = Annotated[str | None, typer.Option("--keep-days", help="Days, or none for no bound.")]
KeepBytes = Annotated[str | None, typer.Option("--keep-bytes", help="As 20GiB, or none for no bound.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go and remove nothing.")]
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@snapshots.command("ls")
def ls(as_json: Json = False) -> None:
    """Snapshots, oldest first, and who refers to each."""
    boxes = Sandboxes()
    try:
        found, kept = boxes.snapshots.list(), boxes.retention.referred()
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
                    boxes.retention.remove(snapshot_id, force=force)
                    removed.append(snapshot_id)
                except MorticeError as error:
                    errors.append(error)
        return removed, errors

    removed, errors = asyncio.run(work())
    _tell(removed, as_json)
    for error in errors:
        raise error


@snapshots.command("prune")
def prune(
    older_than: OlderThan = None, keep_bytes: KeepBytes = None, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Remove snapshots to which no sandbox and no epoch refers, the oldest first, beyond an age or a size in all. Those of
    agents' runs: `mortice agent prune`."""

    async def work() -> list[str]:
        async with Sandboxes() as boxes:
            rules = given_rules(boxes.home, older_than, keep_bytes)
            return [m.id for m in boxes.retention.prune(rules, dry_run=dry_run)]

    _tell(asyncio.run(work()), as_json)


@snapshots.command("keep")
def keep(keep_days: KeepDays = None, keep_bytes: KeepBytes = None, as_json: Json = False) -> None:
    """Show or set how long and how much of what nothing refers to is kept; older ones go by themselves as new ones come."""
    home = Home()
    if keep_days is None and keep_bytes is None:
        rules = read_rules(home)
    else:
        rules = Rules() if keep_days is not None and keep_bytes is not None else read_rules(home)
        if keep_days is not None:
            rules = msgspec.structs.replace(rules, keep_days=_days(keep_days))
        if keep_bytes is not None:
            rules = msgspec.structs.replace(rules, keep_bytes=_bytes(keep_bytes))
        write_rules(home, rules)
    if as_json:
        print(json.dumps(msgspec.to_builtins(rules)))
        return
    print("no bound of age" if rules.keep_days is None else f"{rules.keep_days:g} days")
    print("no bound of size" if rules.keep_bytes is None else f"{rules.keep_bytes / 2**30:g} GiB")


def given_rules(home: Home, older_than: str | None, keep_bytes: str | None) -> Rules:
    """What the command line says, and nothing else; without a word the rules of the home."""
    if older_than is None and keep_bytes is None:
        return read_rules(home)
    return Rules(
        keep_days=None if older_than is None else seconds(older_than) / DAY_S,
        keep_bytes=None if keep_bytes is None else _bytes(keep_bytes),
    )


def _days(text: str) -> float | None:
    try:
        return None if text == "none" else float(text)
    except ValueError:
        raise RequestError(f"{text!r} is no number of days", param="keep_days") from None


def _bytes(text: str) -> int | None:
    if text == "none":
        return None
    spaced = re.sub(r"^([\d.]+)\s*(?=[A-Za-z])", r"\1 ", text)
    return int(quantity(spaced, "B", "keep_bytes", zero=True)[0])


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
