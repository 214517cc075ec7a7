"""`mortice agent workflow`: programs of fixed steps that survive crashes."""

from pathlib import Path
from typing import Annotated

import typer

workflow = typer.Typer(
    name="workflow", help="Programs of fixed steps that survive crashes.", no_args_is_help=True
)

HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder of runs, as for `agent run`.")]
DbOption = Annotated[str | None, typer.Option("--db", help="Database, as for `agent run`.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WaitOption = Annotated[
    bool, typer.Option("--stop-on-ask", help="Exit when consent is asked for, instead of waiting for it.")
]


@workflow.command("run")
def run_workflow(
    program: Annotated[str, typer.Argument(help="PATH.py:FUNCTION or MODULE:FUNCTION.")],
    given: Annotated[str, typer.Option("--input", help="JSON, or @FILE.")] = "null",
    run_id: Annotated[str | None, typer.Option("--id", help="Name of the run. Default: drawn.")] = None,
    stop_on_ask: WaitOption = False,
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a workflow to its end. Exit code 0: it is done; 1: it failed and was undone."""
    from mortice.agent.home import home, new_id
    from mortice.cli.agent_run import drive_workflow

    drive_workflow(
        home(folder, db), run_id or new_id(), program=program, given=given,
        stop_on_ask=stop_on_ask, as_json=as_json,
    )  # fmt: skip


@workflow.command("resume")
def resume_workflow(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="Of the run.")],
    unproven: Annotated[
        bool, typer.Option("--unproven", help="Go on though journal, sandbox and audit log do not match.")
    ] = False,
    stop_on_ask: WaitOption = False,
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a workflow whose process is gone."""
    from mortice.agent.home import home
    from mortice.cli.agent_run import drive_workflow

    drive_workflow(home(folder, db), run_id, unproven=unproven, stop_on_ask=stop_on_ask, as_json=as_json)


@workflow.command("ls")
def list_workflows(
    limit: Annotated[int, typer.Option(help="The latest so many.", min=1)] = 50,
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """List workflow runs, the latest first."""
    from mortice.agent.home import home
    from mortice.cli.agent_show import print_runs

    print_runs(home(folder, db), kind="workflow", limit=limit, as_json=as_json)


@workflow.command("show")
def show_workflow(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="Of the run.")],
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the steps of a workflow run."""
    from mortice.agent.home import home
    from mortice.cli.agent_show import print_run

    print_run(home(folder, db), run_id, html=None, as_json=as_json)


@workflow.command("approve")
def approve_workflow(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="Of the run.")],
    deny: Annotated[bool, typer.Option("--deny", help="Say no.")] = False,
    reason: Annotated[str, typer.Option(help="Kept with a no.")] = "",
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer what a workflow waits with."""
    from mortice.agent.home import home
    from mortice.cli.agent_show import answer

    answer(home(folder, db), run_id, yes=not deny, reason=reason, digest=None, as_json=as_json)
