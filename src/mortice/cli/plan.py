"""`mortice plan`: the group of the planner's verbs."""

import typer

from mortice.cli.plan_profile import calibrate, profile

plan = typer.Typer(
    name="plan", help="What a design costs, and which joint is worth cutting.", no_args_is_help=True
)
for verb in (profile, calibrate):
    plan.command(verb.__name__)(verb)
