"""On which host a worker starts: where it finds partners, since KV within a host is read in place and beyond it copied."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mortice.sched.fleet import Role

PARTNER: dict[Role, Role] = {"prefill": "decode", "decode": "prefill"}


class Place(NamedTuple):
    """A host by the number of workers that may still start there, and those it has by role."""

    room: int
    roles: Mapping[Role, int]


def choose_place(role: Role, places: Sequence[Place]) -> int | None:
    """Index of the place where partners most outnumber workers of the same role; then the one with fewest workers, then the
    first. None where there is no room."""
    free = [i for i, place in enumerate(places) if place.room > 0]
    if not free:
        return None

    def worth(i: int) -> tuple[int, int]:
        roles = places[i].roles
        partners = roles.get(PARTNER[role], 0) if role in PARTNER else 0
        return partners - roles.get(role, 0), -sum(roles.values())

    return max(free, key=worth)
