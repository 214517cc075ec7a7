"""`mortice sandbox doctor` and `setup`"""

import asyncio
import json
import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mortice.sandbox import Probe, Sandboxes


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Try every back end by running a guest in it. Exits with 1 if none that `auto` takes works."""

    async def work() -> tuple[list[Probe], str | None]:
        async with Sandboxes() as boxes:
            return await boxes.probe(), await boxes.strongest()

    probes, chosen = asyncio.run(work())
    if as_json:
        print(json.dumps({"chosen": chosen, "backends": msgspec.to_builtins(probes)}, indent=2))
    else:
        table = Table("back end", "", "strength", "found", "remedy")
        for probe in probes:
            mark = "[green]works" if probe.works else "[yellow]refused"
            found = (
                ", ".join(f"{k} {v}" for k, v in probe.details.items())
                if probe.works
                else probe.why_not or ""
            )
            table.add_row(probe.backend, mark, str(probe.strength), escape(found), escape(probe.remedy or ""))
        Console().print(table)
        print(f"auto takes: {chosen or 'nothing; no sandbox can be created here'}")
    if chosen is None:
        raise typer.Exit(1)


def setup(
    vm: Annotated[
        bool | None,
        typer.Option(
            help="QEMU and a guest kernel too. Left out: where this machine's KVM runs ordinary guests."
        ),
    ] = None,
) -> None:
    """Fetch what sandboxes need from Debian: runsc, a root file system for guests. Needs root; runs once."""
    from mortice.sandbox.kvm import probe_kvm  # nobody else needs these
    from mortice.sandbox.provision import provision

    wanted = probe_kvm().hardware if vm is None else vm
    problems = provision(lambda line: print(f"sandbox: {line}", file=sys.stderr), vm=wanted)
    for problem in problems:
        print(f"mortice: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)
