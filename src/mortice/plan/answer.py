"""What every question gives back: a verdict, tables, charts, what was assumed and where the formulas come from.

Plain data. `show.py` prints it, `charts.py` draws it, `page.py` puts several on one page, `--json` prints
`document()`.
"""

from typing import Any, Literal

import msgspec

Kind = Literal["text", "count", "number", "usd", "percent", "bytes", "seconds", "rate", "flops", "yes"]


class Column(msgspec.Struct, frozen=True):
    """`key` of the rows; `kind` says how its values are written, values themselves are in base units."""

    key: str
    title: str
    kind: Kind = "text"


class Table(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Any], ...]
    best: int | None = None  # row that the verdict speaks of


class Series(msgspec.Struct, frozen=True):
    """A line (or points) of a chart."""

    label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    points: bool = False  # marks only


class Mark(msgspec.Struct, frozen=True):
    """A labelled point, or with only x or y a labelled line."""

    label: str
    x: float | None = None
    y: float | None = None


class Lines(msgspec.Struct, frozen=True, kw_only=True, tag="lines"):
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    marks: tuple[Mark, ...] = ()
    log_x: bool = False
    log_y: bool = False


class Bars(msgspec.Struct, frozen=True, kw_only=True, tag="bars"):
    """Horizontal bars, stacked by part."""

    title: str
    x_label: str
    labels: tuple[str, ...]
    parts: tuple[tuple[str, tuple[float, ...]], ...]  # (name of the part, one value a label)
    marks: tuple[Mark, ...] = ()


class Span(msgspec.Struct, frozen=True):
    lane: str
    colour: int  # which of the palette: the micro-batch
    start: float
    end: float
    label: str = ""


class Gantt(msgspec.Struct, frozen=True, kw_only=True, tag="gantt"):
    title: str
    x_label: str
    lanes: tuple[str, ...]
    spans: tuple[Span, ...]
    marks: tuple[Mark, ...] = ()
    colour_name: str = "micro-batch"


Chart = Lines | Bars | Gantt


class Assumed(msgspec.Struct, frozen=True):
    """A value that the user did not give: what it is, what was taken, why."""

    name: str
    value: str
    why: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    verb: str
    title: str
    verdict: str  # one or two sentences
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    assumed: tuple[Assumed, ...] = ()
    notes: tuple[str, ...] = ()
    formulas: tuple[str, ...] = ()  # names that `mortice plan explain` knows
    facts: dict[str, Any] = {}  # single figures, for --json

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "assumed", tuple(dict.fromkeys(self.assumed)))  # each once

    def document(self) -> dict[str, Any]:
        """One JSON object: the facts, and the rows of each table."""
        tables = [{"title": t.title, "rows": list(t.rows)} for t in self.tables]
        head = {"verb": self.verb, "title": self.title, "verdict": self.verdict}
        tail = {
            "tables": tables,
            "assumed": msgspec.to_builtins(self.assumed),
            "notes": list(self.notes),
            "formulas": list(self.formulas),
        }
        return head | dict(self.facts) | tail
