"""What goes wrong in a simulated cluster, and when. A schedule is data: the same one breaks every policy alike."""

import random
from typing import Literal

import msgspec

Kind = Literal["kill", "cut", "slow", "mute", "skew", "forecast"]
KINDS: tuple[Kind, ...] = ("kill", "cut", "slow", "mute", "skew", "forecast")


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault. `worker` counts the workers that live at that instant, modulo their number.

    kill: the process dies and is replaced. cut: its ports move no byte for `lasts_s`. slow: its steps take `factor` times as
    long. mute: it reports nothing. skew: its reports carry a clock `factor` seconds off. forecast: the forecaster answers
    `factor` (NaN, negative, absurd).
    """

    at_s: float
    kind: Kind
    worker: int = 0
    lasts_s: float = 0.0
    factor: float = 1.0


def random_faults(seed: int, horizon_s: float, count: int) -> list[Fault]:
    """A schedule over the first `horizon_s` seconds."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        kind = rng.choice(KINDS)
        factor = {
            "slow": rng.choice([1.5, 4.0, 20.0]),
            "skew": rng.choice([-3600.0, -5.0, 5.0, 3600.0]),
            "forecast": rng.choice([float("nan"), -5.0, 1e12, float("inf")]),
        }.get(kind, 1.0)
        made.append(
            Fault(
                at_s=rng.uniform(0, horizon_s),
                kind=kind,
                worker=rng.randrange(1 << 16),
                lasts_s=rng.uniform(1.0, horizon_s / 2),
                factor=factor,
            )
        )
    return sorted(made, key=lambda fault: fault.at_s)
