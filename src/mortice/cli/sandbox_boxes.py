"""`mortice sandbox ls | snapshot | restore | fork | destroy`"""

import asyncio
import json
import time
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from mortice.sandbox import BoxInfo, Sandboxes
from mortice.specs.errors import MorticeError

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Which = Annotated[str, typer.Argument(help="Name or id of the sandbox.")]


def ls(
    as_json: Json = False, snapshots: Annotated[bool, typer.Option(help="Snapshots instead.")] = False
) -> None:
    """The sandboxes of this home, or its snapshots."""
    boxes = Sandboxes()
    if snapshots:
        found: list[Any] = boxes.snapshots.list()
        rows = [(m.id, m.name, m.backend, f"{m.num_bytes >> 20} MiB", age(m.created_at)) for m in found]
        head = ("snapshot", "of", "back end", "size", "age")
    else:
        found = boxes.list()
        rows = [(i.name, i.id, f"{i.backend} ({i.strength})", i.state, age(i.created_at)) for i in found]
        head = ("name", "id", "back end (strength)", "state", "age")
    asyncio.run(boxes.close())
    if as_json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def snapshot(name: Which, as_json: Json = False) -> None:
    """Save memory, processes and files of a kept sandbox; it runs on. Prints the snapshot's id."""

    async def work() -> str:
        async with Sandboxes() as boxes:
            box = await boxes.attach(name)
            return await box.snapshot()

    _tell({"snapshot": asyncio.run(work())}, as_json, "snapshot")


def restore(
    snapshot_id: Annotated[str, typer.Argument(help="Id of the snapshot.")],
    name: Annotated[str | None, typer.Option(help="Name of the new sandbox.")] = None,
    as_json: Json = False,
) -> None:
    """A sandbox that goes on where the snapshot was taken; it is kept."""

    async def work() -> BoxInfo:
        async with Sandboxes() as boxes:
            return (await boxes.restore(snapshot_id, name=name, keep=True)).info

    _tell(msgspec.to_builtins(asyncio.run(work())), as_json, "name")


def fork(
    source: Which,
    name: Annotated[list[str] | None, typer.Option(help="Name of the clone; once for each.")] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="How many clones, where no names are given.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Clones with live memory and files, and randomness, clock and identity of their own; they are kept."""

    async def work() -> list[dict[str, Any]]:
        async with Sandboxes() as boxes:
            box = await boxes.attach(source)
            outcomes = await box.fork(len(name) if name else count, names=name)
            return [{"name": o.box.info.name if o.box else None, "error": o.error} for o in outcomes]

    forks = asyncio.run(work())
    if as_json:
        print(json.dumps({"forks": forks}, indent=2))
    else:
        for one in forks:
            print(one["name"] or f"failed: {one['error']}")
    if any(one["error"] for one in forks):
        raise typer.Exit(1)


def destroy(names: Annotated[list[str], typer.Argument(help="Names or ids of sandboxes.")]) -> None:
    """End sandboxes and take away what they held. Their snapshots and their audit chains stay."""

    async def work() -> list[MorticeError]:
        errors = []
        async with Sandboxes() as boxes:
            for name in names:
                try:
                    await boxes.destroy(name)
                except MorticeError as error:
                    errors.append(error)
        return errors

    for error in asyncio.run(work()):
        raise error


def _tell(value: dict[str, Any], as_json: bool, main: str) -> None:
    print(json.dumps(value, indent=2) if as_json else value[main])


def age(created_at: float) -> str:
    """In words."""
    seconds = int(time.time() - created_at)
    return (
        f"{seconds} s"
        if seconds < 120
        else f"{seconds // 60} min"
        if seconds < 7200
        else f"{seconds // 3600} h"
    )
