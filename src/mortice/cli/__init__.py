"""The `mortice` command: one file a verb, no logic of its own."""

import os
import sys

import typer

from mortice import __version__
from mortice.cli.verbs import VerbGroup
from mortice.specs.errors import MorticeError, RequestError

app = typer.Typer(
    name="mortice",
    cls=VerbGroup,
    help="Serve, measure and take apart large language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
