"""One decision of the compiler."""

import linecache
from dataclasses import dataclass

from mortice.tile.diagnostics import Span


@dataclass(frozen=True, slots=True)
class Note:
    """slow: the author may have hoped for more."""

    span: Span
    operator: str
    decision: str
    reason: str
    slow: bool = False

    @property
    def source(self) -> str:
        return linecache.getline(self.span.file, self.span.line).strip()


def in_order(notes: list[Note]) -> list[Note]:
    """Of the source, each once."""
    seen: dict[Note, None] = dict.fromkeys(notes)
    return sorted(seen, key=lambda note: (note.span.file, note.span.line))
