"""`mortice sandbox audit verify | show | export`"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from mortice.obs.audit import chains_in
from mortice.obs.audit_keys import PublicKey
from mortice.obs.audit_verify import records
from mortice.obs.audit_verify import verify as verify_log
from mortice.sandbox.home import Home
from mortice.specs.errors import NotFound, RequestError

audit = typer.Typer(
    name="audit", help="What sandboxes did, and whether the log was altered.", no_args_is_help=True
)
Chain = Annotated[str | None, typer.Option(help="One chain: a sandbox's id, or host.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@audit.command()
def verify(
    as_json: Json = False,
    anchor: Annotated[str | None, typer.Option(help="SEQ:HASH of the spine, kept elsewhere.")] = None,
    key: Annotated[
        str | None,
        typer.Option(help="The log's public key in hex, kept elsewhere (else signing.pub beside it)."),
    ] = None,
) -> None:
    """Check every link of every chain. Exits with 1 if anything was altered, cut or taken out."""
    known = None
    if anchor is not None:
        seq, _, digest = anchor.partition(":")
        if not seq.isdigit() or len(digest) != 64:
            raise RequestError("give SEQ:HASH as `audit verify` prints it for the spine", param="anchor")
        known = (int(seq), digest)
    try:
        public = PublicKey(key) if key is not None else None
    except ValueError:
        raise RequestError("give 64 hexadecimal digits, as signing.pub holds them", param="key") from None
    report = verify_log(Home().audit, anchor=known, key=public)
    if as_json:
        print(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        table = Table("chain", "", "records", "gaps", "problems")
        for chain in report.chains:
            mark = "[green]whole" if chain.ok else "[red]BROKEN"
            table.add_row(
                chain.chain, mark, str(chain.num_records), str(chain.num_gaps), "\n".join(chain.problems)
            )
        Console().print(table)
        spine = report.chains[-1]
        print(f"{report.num_records} records; anchor {spine.num_records - 1}:{spine.head}")
    if not report.ok:
        raise typer.Exit(1)


@audit.command()
def show(
    box: Annotated[
        str | None, typer.Argument(help="Name or id of a sandbox; all chains if left out.")
    ] = None,
    last: Annotated[int, typer.Option(min=1, help="How many records.")] = 50,
    as_json: Json = False,
) -> None:
    """The last records, oldest first."""
    found = sorted(_all(box), key=lambda r: int(r.get("ts_ns", 0)))[-last:]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for record in found:
        rest = {k: v for k, v in record.items() if k not in _FRAME and v is not None}
        # what a guest wrote is shown escaped: a terminal must not act on it
        print(f"{record.get('chain', '')} {record.get('seq')} {record.get('kind')} {json.dumps(rest)[:400]}")


@audit.command()
def export(output: Annotated[Path, typer.Argument(help="File to write; - for standard output.")]) -> None:
    """Every record of every chain as JSON lines, with the name of its chain."""
    target = sys.stdout if str(output) == "-" else output.open("w")
    for record in _all(None):
        target.write(json.dumps(record) + "\n")
    target.flush()


_FRAME = ("seq", "prev", "ts_ns", "mono_ns", "boot_id", "kind", "chain", "backend", "strength", "gen", "box")


def _all(box: str | None) -> list[dict[str, Any]]:
    folder = Home().audit
    found = []
    for chain in chains_in(folder):
        mine = [{**record, "chain": chain} for record in records(folder, chain)]
        if box is None or box == chain or any(r.get("name") == box for r in mine[:3]):
            found += mine
    if box is not None and not found:
        raise NotFound(f"there is no record of a sandbox {box!r}", param="box")
    return found
