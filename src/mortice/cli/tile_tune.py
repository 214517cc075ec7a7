"""What `mortice tile tune` does and says."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from mortice.specs.errors import RequestError


@dataclass(frozen=True)
class Settings:
    file: Path | None
    top: int
    rounds: int
    space: dict[str, Sequence[Any]] | None
    clock: str
    seed: int
    again: bool


def parsed_space(given: list[str]) -> dict[str, Sequence[Any]] | None:
    """`BM=64,128` as {"BM": (64, 128)}; None of nothing."""
    space: dict[str, Sequence[Any]] = {}
    for one in given:
        name, _, values = one.partition("=")
        try:
            space[name] = tuple(int(value) for value in values.split(","))
        except ValueError:
            raise RequestError(f"{one} names no whole numbers, as BM=64,128 does", param="space") from None
    return space or None


def tuned(
    kernel: Any, specs: tuple[Any, ...], drawn: Callable[[tuple[Any, ...]], list[Any]], settings: Settings
) -> dict[str, Any]:
    """A document: the constants, where they come from, and all trials."""
    from mortice.tile.tune import Schedules, candidates, search, this_cpu

    machine, name = this_cpu(), kernel.__name__
    kernel = kernel.on("c")
    views, _ = kernel.views(*specs)
    schedules = Schedules.read(settings.file) if settings.file else Schedules()
    known = schedules.find(name, "c", machine.name, views)
    about = {"kernel": name, "machine": machine.name, "shapes": [list(x.shape) for x in views.values()]}
    if known is not None and not settings.again:
        return about | {"from": "file", "constants": known, "trials": []}
    if settings.top == 0:
        ranked = candidates(kernel, specs, machine, settings.space)
        rows = [
            {"constants": x.constants, "predicted_ms": x.prediction.seconds * 1e3}
            if x.prediction
            else {"constants": x.constants, "refused": x.reason}
            for x in ranked
        ]
        return about | {"from": "model", "constants": ranked[0].constants, "trials": rows}
    found = None
    clock = time.thread_time if settings.clock == "thread" else time.perf_counter
    with (
        one_thread(settings.clock == "thread"),
        typer.progressbar(length=1000, label=f"{name}", file=sys.stderr) as bar,
    ):
        found = search(
            kernel, drawn(specs), machine, space=settings.space, top=settings.top, rounds=settings.rounds,
            seed=settings.seed, clock=clock, progress=lambda done, of: bar.update(1000 * done // of - bar.pos),
        )  # fmt: skip
    trials = [
        {"constants": x.constants, "predicted_ms": x.predicted * 1e3, "measured_ms": x.measured * 1e3}
        for x in found.trials
    ]
    if settings.file:
        entry = {"constants": found.best, "measured_ms": trials[0]["measured_ms"], "clock": settings.clock}
        schedules.add(name, "c", machine.name, views, entry)
        schedules.write(settings.file)
    refused = [{"constants": x.constants, "reason": x.reason} for x in found.refused]
    return about | {
        "from": "measurement",
        "constants": found.best,
        "considered": found.considered,
        "trials": trials,
        "refused": refused,
    }


def table(document: dict[str, Any]) -> str:
    lines = [f"{'constants':40} {'predicted ms':>13} {'measured ms':>13}"] if document["trials"] else []
    for row in document["trials"]:
        constants = _words(row["constants"])
        if "refused" in row:
            lines.append(f"{constants:40} refused: {row['refused']}")
            continue
        measured = f"{row['measured_ms']:13.3f}" if "measured_ms" in row else ""
        lines.append(f"{constants:40} {row['predicted_ms']:13.3f} {measured}")
    lines += [f"{_words(x['constants']):40} refused: {x['reason']}" for x in document.get("refused", ())]
    return "\n".join(
        [*lines, f"{document['kernel']}: {_words(document['constants'])} (by {document['from']})"]
    )


def _words(constants: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in constants.items())


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Torch's threads, which kernels use too, are one inside."""
    import torch

    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
