"""Numbers as people read them."""

import math
from collections.abc import Callable
from typing import Any

from mortice.plan.answer import Kind

_DECIMAL = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def scaled(value: float, unit: str, digits: int = 3) -> str:
    """`2.88e8`, `B` -> `288 MB`."""
    if value == 0:
        return f"0 {unit}".strip()
    for factor, prefix in _DECIMAL:
        if abs(value) >= factor * 0.9995:
            return f"{significant(value / factor, digits)} {prefix}{unit}".strip()
    return f"{value:.{digits}g} {unit}".strip()


def significant(value: float, digits: int = 3) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def seconds(value: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value) >= factor * 0.9995:
            return f"{significant(value / factor)} {unit}"
    return f"{value * 1e9:.3g} ns" if value else "0 s"


def tokens(value: float) -> str:
    """8192 -> `8K`, 1000000 -> `1M`: contexts are written in powers of two where they are."""
    if value >= 1_000_000 and value % 1_000_000 == 0:
        return f"{value // 1_000_000:.0f}M"
    if value >= 1024 and value % 1024 == 0:
        return f"{value // 1024:.0f}K"
    return f"{value:,.0f}"


def cell(value: Any, kind: Kind) -> str:
    """One value of a table; a missing one is a dash."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    if not math.isfinite(value):
        return "∞"
    return _WRITERS[kind](value)


_WRITERS: dict[Kind, Callable[[Any], str]] = {
    "text": str,
    "yes": lambda v: "yes" if v else "no",
    "count": lambda v: f"{v:,.0f}",
    "number": lambda v: significant(v) if abs(v) < 1e6 else f"{v:.2e}",
    "usd": lambda v: f"{v:.3f}" if v < 10 else f"{v:,.2f}",
    "percent": lambda v: f"{100 * v:.1f} %",
    "bytes": lambda v: scaled(v, "B"),
    "rate": lambda v: scaled(v, "B/s"),
    "flops": lambda v: scaled(v, "FLOP"),
    "seconds": seconds,
}
