"""`mortice plan`: the group of the planner's verbs."""

import typer

from mortice.cli.plan_cluster import afd, compare, ep, kv, supernode
from mortice.cli.plan_codesign import cost, density, design, explain, roofline
from mortice.cli.plan_deploy import deploy, report
from mortice.cli.plan_place import place
from mortice.cli.plan_profile import calibrate, profile

plan = typer.Typer(
    name="plan", help="What a design costs, and which joint is worth cutting.", no_args_is_help=True
)
for verb in (
    roofline, cost, density, afd, ep, supernode, kv, design, compare, explain, deploy, place, report, profile, calibrate,
):  # fmt: skip
    plan.command(verb.__name__)(verb)
