"""Runs passes in order, and checks after each what it promised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mortice.tile.ir.stmt import Function


@dataclass(frozen=True, slots=True)
class Pass:
    """needs and gives: names of invariants. check raises TileError or AssertionError if `gives` does not hold."""

    name: str
    run: Callable[[Function], Function]
    check: Callable[[Function], None]
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()


def run(
    function: Function, passes: Sequence[Pass], trace: Callable[[str, Function], None] | None = None
) -> Function:
    """trace: called with the name of each pass and its result."""
    holds: set[str] = set()
    for step in passes:
        missing = step.needs - holds
        assert not missing, f"{step.name} needs {', '.join(sorted(missing))}"
        function = step.run(function)
        step.check(function)
        holds |= step.gives
        if trace is not None:
            trace(step.name, function)
    return function
