"""`mortice agent`: run agents and workflows that survive crashes.

What the verbs do lies in modules that are imported when a verb runs: they cost a second that no other command should
pay.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mortice.cli.agent_audit import audit
from mortice.cli.agent_mcp import mcp
from mortice.cli.agent_workflow import workflow

agent = typer.Typer(name="agent", help="Run agents and workflows that survive crashes.", no_args_is_help=True)
agent.add_typer(workflow)
agent.add_typer(mcp)
agent.add_typer(audit)

Approve = Literal["ask", "wait", "stop", "deny"]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of runs. Default: $MORTICE_AGENT_HOME, else the state folder."),
]
DbOption = Annotated[
    str | None,
    typer.Option("--db", help="sqlite:////path or postgresql://... Default: a file in the folder."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Of the run.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder for the files that came out.")]
ApproveOption = Annotated[
    Approve,
    typer.Option(
        help="Calls that need consent: ask at the terminal (wait where there is none), wait for "
        "`mortice agent approve`, stop and exit, or deny."
    ),
]
OtlpOption = Annotated[str | None, typer.Option(help="Send spans to this OTLP/HTTP address.")]
KeepOption = Annotated[bool, typer.Option("--keep-sandbox", help="Leave the sandbox running at the end.")]


@agent.command()
def run(
    task: Annotated[str, typer.Argument(help="What to do. Overrides the document's.")] = "",
    script: Annotated[
        Path | None, typer.Option(help="What a scripted model says, turn by turn: deterministic.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The agent: model, tools, servers, budgets.")] = None,
    run_id: Annotated[str | None, typer.Option("--id", help="Name of the run. Default: drawn.")] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint, up to /v1.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the first the server lists.")] = None,
    tool: Annotated[
        list[str] | None, typer.Option(help="`sandbox`, PATH.py:FUNCTION or MODULE:FUNCTION; repeatable.")
    ] = None,
    max_turns: Annotated[int | None, typer.Option(help="Bound on turns.", min=1)] = None,
    out: OutOption = None,
    approve: ApproveOption = "ask",
    otlp: OtlpOption = None,
    keep_sandbox: KeepOption = False,
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run an agent to its end. Exit code 0: it gave an answer; 1: it failed or a budget stopped it.

    The run's id is printed on stderr first; whatever happens to this process, `mortice agent resume ID` goes
    on.
    """
    from mortice.agent.home import home, new_id
    from mortice.cli.agent_run import drive, spec_of_options

    spec = spec_of_options(task, script, config, base_url, model, tool or [], max_turns)
    name = run_id or new_id()
    drive(
        home(folder, db), name, lambda agents: agents.start(spec, name),
        as_json=as_json, out=out, approve=approve, otlp=otlp, keep_sandbox=keep_sandbox,
    )  # fmt: skip


@agent.command()
def resume(
    run_id: IdArgument,
    unproven: Annotated[
        bool, typer.Option("--unproven", help="Go on though journal, sandbox and audit log do not match.")
    ] = False,
    out: OutOption = None,
    approve: ApproveOption = "ask",
    otlp: OtlpOption = None,
    keep_sandbox: KeepOption = False,
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run whose process is gone: from its last finished step, with the sandbox as it was then.

    Says whether journal, sandbox and audit log match the run's last epoch, and does not go on if they were altered. A
    run that has ended gives its result again.
    """
    from mortice.agent.home import home
    from mortice.cli.agent_run import drive

    drive(
        home(folder, db), run_id, lambda agents: agents.resume(run_id, unproven=unproven), resumed=True,
        as_json=as_json, out=out, approve=approve, otlp=otlp, keep_sandbox=keep_sandbox,
    )  # fmt: skip


@agent.command()
def branch(
    run_id: IdArgument,
    turn: Annotated[int, typer.Option(help="The turn from which to take another way.", min=0)],
    anew: Annotated[
        bool, typer.Option("--anew", help="Do effects on the outside world again; else they are replayed.")
    ] = False,
    out: OutOption = None,
    approve: ApproveOption = "ask",
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take another way from a turn of an earlier run.

    Its sandbox starts from the snapshot of that turn, and what the first run did to the outside world is
    replayed from the ledger, not done twice.
    """
    from mortice.agent.home import home
    from mortice.agent.service import Agents
    from mortice.cli.agent_run import drive

    made: list[str] = []

    async def begin(agents: Agents) -> None:
        made.append(await agents.branch(run_id, turn, "anew" if anew else "replay"))

    drive(home(folder, db), "", begin, made=made, as_json=as_json, out=out, approve=approve)


@agent.command("ls")
def list_runs(
    limit: Annotated[int, typer.Option(help="The latest so many.", min=1)] = 50,
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, the latest first."""
    from mortice.agent.home import home
    from mortice.cli.agent_show import print_runs

    print_runs(home(folder, db), kind="agent", limit=limit, as_json=as_json)


@agent.command()
def show(
    run_id: IdArgument,
    html: Annotated[Path | None, typer.Option(help="Write the timeline as one HTML page.")] = None,
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run turn by turn: thought, call, observation, files changed, what it cost."""
    from mortice.agent.home import home
    from mortice.cli.agent_show import print_run

    print_run(home(folder, db), run_id, html=html, as_json=as_json)


@agent.command()
def approve(
    run_id: IdArgument,
    deny: Annotated[bool, typer.Option("--deny", help="Say no.")] = False,
    reason: Annotated[str, typer.Option(help="Told to the model with a no.")] = "",
    digest: Annotated[
        str | None, typer.Option(help="Of the call that is meant; needed where several wait.")
    ] = None,
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer the call that a run waits with: yes to exactly this call, or no."""
    from mortice.agent.home import home
    from mortice.cli.agent_show import answer

    answer(home(folder, db), run_id, yes=not deny, reason=reason, digest=digest, as_json=as_json)


@agent.command()
def cancel(run_id: IdArgument, folder: HomeOption = None, db: DbOption = None) -> None:
    """End a run at its next step."""
    from mortice.agent.home import home
    from mortice.cli.agent_show import cancel_run

    cancel_run(home(folder, db), run_id)


@agent.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Age since the run ended, as 90s, 30m, 12h or 7d.")
    ] = None,
    keep_bytes: Annotated[
        str | None, typer.Option("--keep-bytes", help="As 20GiB: the oldest go until they hold no more.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go and remove nothing.")] = False,
    folder: HomeOption = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the snapshots of runs that ended long ago, by default by the rules of `mortice sandbox snapshots keep`. Their
    journals stay; they cannot be branched any more."""
    from mortice.agent.home import home
    from mortice.cli.agent_prune import prune_snapshots

    prune_snapshots(
        home(folder, db), older_than=older_than, keep_bytes=keep_bytes, dry_run=dry_run, as_json=as_json
    )


@agent.command("serve-mcp")
def serve_mcp(
    config: Annotated[Path, typer.Option(help="The agent that is offered as a tool.")],
    http: Annotated[
        str | None, typer.Option(help="HOST:PORT for streamable HTTP. Default: stdio.", metavar="HOST:PORT")
    ] = None,
    auth: Annotated[Path | None, typer.Option(help="Who may call over HTTP: see docs/agent-mcp.md.")] = None,
    folder: HomeOption = None,
    db: DbOption = None,
) -> None:
    """Offer an agent as a tool to any MCP host, over stdio or HTTP."""
    from mortice.agent.home import home
    from mortice.cli.agent_serve import serve_agent

    serve_agent(home(folder, db), config, http=http, auth=auth)
