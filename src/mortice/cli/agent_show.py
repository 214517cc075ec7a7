"""What `mortice agent ls`, `show`, `approve` and `cancel` do: they read the store and send to it, and run nothing."""

from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from mortice.agent.dashboard import read_run, state_of
from mortice.agent.durable import RunRecord
from mortice.agent.durable_dbos import DbosReader
from mortice.agent.home import Home
from mortice.agent.record import Timeline, pending
from mortice.agent.runlog import RunLog
from mortice.agent.timeline_page import page
from mortice.cli.agent_output import line
from mortice.specs.errors import NotFound, RequestError, WrongState


def print_runs(place: Home, *, kind: str, limit: int, as_json: bool) -> None:
    try:
        with closing(DbosReader(place.db)) as reader:
            found = [(run, state_of(reader, run)) for run in reader.runs(kind=kind, limit=limit)]
    except NotFound:
        found = []
    if as_json:
        rows = [_row(run, state) for run, state in found]
        typer.echo(msgspec.json.encode(rows).decode())
        return
    table = Table("id", "state", "begun", "of", "what")
    for run, state in found:
        row = _row(run, state)
        table.add_row(run.id, state, row["created"], run.parent or run.forked_from or "", line(row["what"]))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def print_run(place: Home, run_id: str, *, html: Path | None, as_json: bool) -> None:
    made = read_run(place, run_id)
    if html is not None:
        html.write_text(page(made))
        typer.echo(str(html), err=True)
    if as_json:
        typer.echo(msgspec.json.encode(made).decode())
    elif html is None:
        _print(made)


def answer(place: Home, run_id: str, *, yes: bool, reason: str, digest: str | None, as_json: bool) -> None:
    with closing(DbosReader(place.db)) as reader:
        run = reader.find(run_id)
        ask = pending(reader.steps(run_id)) if run.state == "running" else None
        if ask is None:
            raise WrongState(f"run {run_id!r} waits for no consent")
        if digest is not None and digest != ask.digest:
            raise RequestError(f"the call that waits is {ask.digest}", param="digest")
        message = {"approve": yes, "digest": ask.digest, "reason": reason, "by": "command line"}
        with closing(RunLog(place.audit)) as log:
            log.note(run_id, "consent", tool=ask.tool, **message)
        reader.send(run_id, f"approve {ask.place}", message)
    if as_json:
        typer.echo(msgspec.json.encode({"id": run_id, "approved": yes, "digest": ask.digest}).decode())
    else:
        typer.echo(
            f"{'yes' if yes else 'no'} to {ask.tool}; if no process runs it: mortice agent resume {run_id}"
        )


def cancel_run(place: Home, run_id: str) -> None:
    with closing(DbosReader(place.db)) as reader:
        if reader.find(run_id).state not in ("running", "suspended"):
            raise WrongState(f"run {run_id!r} has ended")
        reader.cancel(run_id)
    typer.echo(f"run {run_id} ends at its next step")


def _row(run: RunRecord, state: str) -> dict[str, Any]:
    payload = run.payload if isinstance(run.payload, dict) else {}
    created = msgspec.json.decode(msgspec.json.encode(_when(run.created_s)))
    return {
        "id": run.id,
        "state": state,
        "created": created,
        "parent": run.parent,
        "branch_of": run.forked_from,
        "what": str(payload.get("task") or payload.get("workflow") or ""),
        "error": run.error,
    }


def _when(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _print(made: Timeline) -> None:
    typer.echo(f"{made.id}  {made.state}  {made.name}  {made.reason}".rstrip())
    if made.task:
        typer.echo(f"task: {line(made.task)}")
    for turn in made.turns:
        tokens = turn.input_tokens + turn.output_tokens
        typer.echo(f"\nturn {turn.turn}  {turn.seconds:.2f} s  {tokens} tokens")
        if turn.thought:
            typer.echo(f"  {line(turn.thought)}")
        for call in turn.calls:
            arguments = msgspec.json.encode(call.arguments).decode()
            mark = "waits" if call.state == "waiting" else "error" if call.state == "error" else "="
            typer.echo(f"  -> {call.tool} {line(arguments)}\n     {mark} {line(call.observation)}")
            if call.changed:
                typer.echo(f"     files: {', '.join(call.changed)}")
    for step in made.steps:
        typer.echo(f"  {step.name}  {step.seconds:.2f} s{'  ' + step.error if step.error else ''}")
    if made.output:
        typer.echo(f"\n{made.output}")
