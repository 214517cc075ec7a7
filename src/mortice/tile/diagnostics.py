"""Where something stands in a kernel author's file, and what is said when it is wrong."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a source file; lines and columns count from 1."""

    file: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


NOWHERE = Span("<made by the compiler>", 0)


class TileError(Exception):
    """A mistake in a kernel or in a call of one: place, operator, what disagrees, and the remedy, in one line."""

    def __init__(self, span: Span, operator: str, problem: str, remedy: str) -> None:
        self.span, self.operator, self.problem, self.remedy = span, operator, problem, remedy
        super().__init__(f"{span}: {operator}: {problem}; {remedy}")


class ArgumentError(TileError, TypeError):
    """A call's arguments do not fit the kernel; raised before anything runs."""


class UnsupportedError(TileError):
    """The kernel is right, but this target cannot run it."""


class CheckError(TileError):
    """Found while a kernel ran under the interpreter or the simulator: out of bounds, uninitialised, a race."""
