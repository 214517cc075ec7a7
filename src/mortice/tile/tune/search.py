"""Candidates ranked by the model, the best of them measured side by side."""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mortice.tile.diagnostics import ArgumentError, TileError
from mortice.tile.host import bind
from mortice.tile.kernel import Kernel
from mortice.tile.tune.machine import Machine
from mortice.tile.tune.model import Prediction, predict

Constants = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """prediction: None if the kernel cannot be made with these constants, and the reason says why."""

    constants: Constants
    prediction: Prediction | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    constants: Constants
    predicted: float
    measured: float


@dataclass(frozen=True, slots=True)
class Found:
    """best: the constants of the fastest trial. trials: fastest first. considered: how many the model ranked; refused:
    those that cannot be made."""

    best: Constants
    trials: tuple[Trial, ...]
    considered: int
    refused: tuple[Candidate, ...] = field(default=())

    @property
    def seconds(self) -> float:
        return self.trials[0].measured


def candidates(
    kernel: Kernel,
    arguments: Sequence[Any],
    machine: Machine,
    space: Mapping[str, Sequence[Any]] | None = None,
) -> list[Candidate]:
    """All combinations of the kernel's choices (or of `space`), the model's favourites first, refused ones last."""
    choices = space if space is not None else kernel.choices
    if unknown := choices.keys() - kernel.constants.keys():
        problem = f"it has no constant {', '.join(sorted(unknown))}"
        raise ArgumentError(
            kernel.span, kernel.__name__, problem, f"name some of {', '.join(kernel.constants)}"
        )
    if not choices:
        problem = "it names no choices"
        raise ArgumentError(
            kernel.span,
            kernel.__name__,
            problem,
            'say @tile.kernel(choices={"BM": (64, 128)}), or give a space',
        )
    found = [
        _candidate(kernel, arguments, dict(zip(choices, values, strict=True)), machine)
        for values in itertools.product(*choices.values())
    ]
    return sorted(found, key=lambda x: x.prediction.seconds if x.prediction else float("inf"))


def _candidate(kernel: Kernel, arguments: Sequence[Any], constants: Constants, machine: Machine) -> Candidate:
    try:
        function = kernel.lowered(*arguments, **constants)
        views, scalars = kernel.views(*arguments)
        return Candidate(constants, predict(function, bind(function, views, scalars).dims, machine))
    except TileError as error:
        return Candidate(constants, None, str(error))


def search(
    kernel: Kernel,
    arguments: Sequence[Any],
    machine: Machine,
    *,
    space: Mapping[str, Sequence[Any]] | None = None,
    top: int = 6,
    rounds: int = 7,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Found:
    """Measures the model's `top` candidates and the kernel's own defaults, in rounds over all of them in an order drawn
    from `seed`, and compares medians. Raises TileError if no candidate can be made."""
    ranked = candidates(kernel, arguments, machine, space)
    possible = [x for x in ranked if x.prediction is not None]
    refused = tuple(x for x in ranked if x.prediction is None)
    if not possible:
        raise ArgumentError(kernel.span, kernel.__name__, "no candidate can be made", refused[0].reason)
    own = kernel.defaults(*arguments)
    chosen = possible[:top]
    default = [x for x in possible if all(own[key] == value for key, value in x.constants.items())]
    chosen += [x for x in default if x not in chosen]
    steps = len(chosen) * (rounds + 1)
    with ThreadPoolExecutor(max(1, min(machine.cores, len(chosen)))) as pool:
        list(pool.map(lambda x: kernel.compiled(*arguments, **x.constants), chosen))
    times: list[list[float]] = [[] for _ in chosen]
    order, draw, done = list(range(len(chosen))), random.Random(seed), 0
    for round_ in range(rounds + 1):  # the first is not kept: caches and pages
        draw.shuffle(order)
        for i in order:
            start = clock()
            kernel(*arguments, **chosen[i].constants)
            if round_:
                times[i].append(clock() - start)
            done += 1
            progress(done, steps)
    trials = [
        Trial(x.constants, x.prediction.seconds if x.prediction else 0.0, statistics.median(t))
        for x, t in zip(chosen, times, strict=True)
    ]
    trials.sort(key=lambda trial: trial.measured)
    return Found(trials[0].constants, tuple(trials), len(possible), refused)
