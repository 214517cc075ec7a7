"""`mortice doctor`"""

import json
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what this machine has and lacks, and how to mend it. Exits with 1 if serving cannot work."""
    from mortice.engine.checkup import (
        check_machine,
    )  # imports torch, which takes seconds that no other verb should pay

    findings = check_machine()
    if as_json:
        print(
            json.dumps(
                {"ok": all(f.ok or not f.needed for f in findings), "checks": msgspec.to_builtins(findings)},
                indent=2,
            )
        )
    else:
        table = Table("", "check", "found", "remedy")
        for finding in findings:
            mark = "[green]ok" if finding.ok else ("[red]missing" if finding.needed else "[yellow]without")
            table.add_row(mark, finding.name, finding.found, "" if finding.ok else finding.remedy)
        Console().print(table)
    if not all(f.ok or not f.needed for f in findings):
        raise typer.Exit(1)
