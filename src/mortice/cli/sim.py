"""`mortice sim`: the group of the simulator's verbs."""

import typer

from mortice.cli.sim_distserve import distserve

sim = typer.Typer(
    name="sim", help="A cluster under a virtual clock, decided by the code that serves.", no_args_is_help=True
)
for verb in (distserve,):
    sim.command(verb.__name__)(verb)
