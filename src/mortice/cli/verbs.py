"""The verbs, each imported when it runs: together they cost a second that none of them should pay for the others."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

VERBS = {
    "pull": "Bring a model into the cache.",
    "serve": "Serve a model behind the OpenAI API, prefill and decode in workers of their own.",
    "worker": "Join a server and run workers for it until Ctrl-C; "
    "joins again after it was cut off or the server was restarted.",
    "chat": "Talk to a model. Answers go to stdout as they come, TTFT and tokens/s of each to stderr.",
    "bench": "Measure an OpenAI endpoint: TTFT, TPOT, ITL, end-to-end latency, throughput, SLO attainment, goodput.",
    "doctor": "Say what this machine has and lacks, and how to mend it. Exits with 1 if serving cannot work.",
    "plan": "What a design costs, and which joint is worth cutting.",
    "sim": "A cluster under a virtual clock, decided by the code that serves.",
    "sandbox": "Machines for code nobody trusts: run, save, fork, look back.",
    "agent": "Run agents and workflows that survive crashes.",
    "tile": "Kernels in the kernel language.",
}  # in the order of the help; the lines are those of the verbs themselves, as a test compares


class VerbGroup(TyperGroup):
    """Lists and completes verbs by the table, and imports the one that runs or explains itself."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, text in VERBS.items():
            self.add_command(TyperCommand(name=name, help=text))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load(command.name or ""), rest


def load(name: str) -> Any:
    """The command of a verb: `mortice.cli.NAME` has a function or a group of that name."""
    verb = getattr(import_module(f"mortice.cli.{name}"), name)
    if isinstance(verb, typer.Typer):
        return get_group(verb)
    alone = typer.Typer(add_completion=False)
    alone.command(name)(verb)
    return get_command(alone)
