"""Values that a figure rests on and nobody gave: they travel with the answer."""

import msgspec


class Assumption(msgspec.Struct, frozen=True):
    """A value that was taken, and why."""

    name: str
    value: str
    why: str


def merge(*groups: tuple[Assumption, ...]) -> tuple[Assumption, ...]:
    """Each once, in the order they were first made."""
    return tuple(dict.fromkeys(each for group in groups for each in group))
