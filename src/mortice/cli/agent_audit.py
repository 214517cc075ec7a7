"""`mortice agent audit verify | show`: the hash-chained log of what runs did."""

import json
from pathlib import Path
from typing import Annotated

import typer

audit = typer.Typer(
    name="audit", help="What runs did, and whether the log was altered.", no_args_is_help=True
)
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of runs. Default: $MORTICE_AGENT_HOME, else the state folder."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
_FRAME = ("seq", "prev", "ts_ns", "mono_ns", "boot_id", "kind", "run", "sha256")


@audit.command()
def verify(folder: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check every link of every chain. Exits with 1 if anything was altered, cut or taken out."""
    import msgspec

    from mortice.agent.home import home
    from mortice.obs.audit_verify import verify as verify_log

    report = verify_log(home(folder).audit)
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(report)))
    else:
        for chain in report.chains:
            state = "whole" if chain.ok else f"BROKEN: {'; '.join(chain.problems)}"
            typer.echo(f"{chain.chain}  {chain.num_records} records  {state}")
    if not report.ok:
        raise typer.Exit(1)


@audit.command()
def show(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="Of the run.")],
    folder: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the log has of a run, in order: model calls, tool calls, consents, epochs, resumptions."""
    from mortice.agent.home import home
    from mortice.cli.agent_output import line
    from mortice.obs.audit import chains_in
    from mortice.obs.audit_verify import records
    from mortice.specs.errors import NotFound

    place = home(folder).audit
    found = [
        {"chain": chain, **record}
        for chain in chains_in(place)
        for record in records(place, chain)
        if record.get("run") == run_id
    ]
    if not found:
        raise NotFound(f"the audit log has nothing of a run {run_id!r}", param="id")
    found.sort(key=lambda record: int(record["ts_ns"]))
    if as_json:
        typer.echo(json.dumps(found))
        return
    for record in found:
        rest = {name: value for name, value in record.items() if name not in (*_FRAME, "chain")}
        typer.echo(f"{record['chain']} {record['seq']:>5}  {record['kind']}  {line(json.dumps(rest))}")
