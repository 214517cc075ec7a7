"""`mortice doctor`"""

import asyncio
import json
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
    """Say what this machine has and lacks, and how to mend it. Exits with 1 if serving cannot work."""
    from mortice.engine.checkup import (
        check_machine,
    )  # imports torch, which takes seconds that no other verb should pay

    findings = check_machine()
    probes = asyncio.run(_sandboxes())
    if as_json:
        print(
            json.dumps(
                {
                    "ok": all(f.ok or not f.needed for f in findings),
                    "checks": msgspec.to_builtins(findings),
                    "sandboxes": msgspec.to_builtins(probes),
                },
                indent=2,
            )
        )
    else:
        table = Table("", "check", "found", "remedy")
        for finding in findings:
            mark = "[green]ok" if finding.ok else ("[red]missing" if finding.needed else "[yellow]without")
            remedy = "" if finding.ok else escape(finding.remedy)  # extras are named in brackets
            table.add_row(mark, finding.name, escape(finding.found), remedy)
        for probe in probes:
            found = f"strength {probe.strength}" if probe.works else probe.why_not or ""
            mark = "[green]ok" if probe.works else "[yellow]without"
            table.add_row(mark, f"sandbox: {probe.backend}", escape(found), escape(probe.remedy or ""))
        Console().print(table)
    if not all(f.ok or not f.needed for f in findings):
        raise typer.Exit(1)


async def _sandboxes() -> list[Probe]:
    async with Sandboxes() as boxes:
        return await boxes.probe()
