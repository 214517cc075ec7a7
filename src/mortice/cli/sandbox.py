"""`mortice sandbox`: the group of the sandbox's verbs."""

import typer

from mortice.cli.sandbox_audit import audit
from mortice.cli.sandbox_boxes import destroy, fork, ls, restore, snapshot
from mortice.cli.sandbox_doctor import doctor, setup
from mortice.cli.sandbox_mcp import serve_mcp
from mortice.cli.sandbox_run import run, shell
from mortice.cli.sandbox_snapshots import snapshots

sandbox = typer.Typer(
    name="sandbox", help="Machines for code nobody trusts: run, save, fork, look back.", no_args_is_help=True
)
sandbox.command(context_settings={"allow_interspersed_args": False})(run)
for verb in (shell, ls, snapshot, restore, fork, destroy, doctor, setup):
    sandbox.command(verb.__name__)(verb)
sandbox.command("serve-mcp")(serve_mcp)
sandbox.add_typer(audit)
sandbox.add_typer(snapshots)
