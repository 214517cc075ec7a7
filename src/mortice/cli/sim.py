"""`mortice sim`: the group of the simulator's verbs."""

import typer

from mortice.cli.sim_distserve import distserve
from mortice.cli.sim_run import replay, run

sim = typer.Typer(
    name="sim", help="A cluster under a virtual clock, decided by the code that serves.", no_args_is_help=True
)
for verb in (run, replay, distserve):
    sim.command(verb.__name__)(verb)
