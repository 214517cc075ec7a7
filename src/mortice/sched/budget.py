"""One budget of accelerators among several control planes: two models, or two classes of SLO, on one cluster.

What each plane has is never taken from it at once, its workers drain; so a bound grows only by what nobody holds, and the
sum of what is held and may be ordered stays within the budget at every instant. The most urgent that lack go first.
"""

from collections.abc import Sequence

import msgspec


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What one plane has and would have, in accelerators; `unit`: of one worker. `urgency`: its share of late requests."""

    held: int  # of workers that stand, start or drain
    least: int
    wanted: int
    urgency: float = 0.0
    unit: int = 1


def shares(budget: int, claims: Sequence[Claim]) -> list[int]:
    """Accelerators that each is to have, at most what it wants: its least, then worker by worker to the most urgent that
    still lacks, of equally urgent ones to the one that has the smallest part of its wish. ValueError if the least of all is
    more than there is."""
    given = [claim.least for claim in claims]
    if sum(given) > budget:
        raise ValueError(f"{len(claims)} deployments need at least {sum(given)} accelerators of {budget}")
    left = budget - sum(given)
    while True:
        lacking = [
            i for i, c in enumerate(claims) if given[i] + c.unit <= max(c.wanted, c.least) and c.unit <= left
        ]
        if not lacking:
            return given
        i = min(lacking, key=lambda i: (-claims[i].urgency, given[i] / claims[i].wanted, i))
        given[i] += claims[i].unit
        left -= claims[i].unit


def bounds(budget: int, claims: Sequence[Claim]) -> list[int]:
    """`max_gpus` of each plane until the next turn: its share where it holds that much, else what it holds and its part of
    what is free."""
    targets = shares(budget, claims)
    free = budget - sum(claim.held for claim in claims)
    found = [min(target, claim.held) for target, claim in zip(targets, claims, strict=True)]
    order = sorted(range(len(claims)), key=lambda i: (-claims[i].urgency, i))
    for i in order:
        grown = max(0, min(targets[i] - found[i], free) // claims[i].unit * claims[i].unit)
        found[i] += grown
        free -= grown
    return found
