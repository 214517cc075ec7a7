"""The `mortice` command: one file a verb, no logic of its own."""

import os
import sys

import typer

from mortice import __version__
from mortice.cli.agent import agent
from mortice.cli.bench import bench
from mortice.cli.chat import chat
from mortice.cli.doctor import doctor
from mortice.cli.plan import plan
from mortice.cli.pull import pull
from mortice.cli.sandbox import sandbox
from mortice.cli.serve import serve
from mortice.cli.sim import sim
from mortice.cli.tile import tile
from mortice.cli.worker import worker
from mortice.specs.errors import MorticeError, RequestError

app = typer.Typer(
    name="mortice",
    help="Serve, measure and take apart large language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (pull, serve, worker, chat, bench, doctor):
    app.command(verb.__name__)(verb)
app.add_typer(plan)
app.add_typer(sim)
app.add_typer(sandbox)
app.add_typer(agent)
app.add_typer(tile)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main() -> None:
    """Exit codes: 0 done, 1 the work failed, 2 the request was wrong; a wrong request gets one line."""
    try:
        app()
    except RequestError as error:
        field = f"{error.param}: " if error.param and error.param not in error.message else ""
        print(f"mortice: {field}{error.message}", file=sys.stderr)
        sys.exit(2)
    except MorticeError as error:
        print(f"mortice: {error.message}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
