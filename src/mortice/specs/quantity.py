"""Numbers with units, as catalogue files write them: `3.35 TB/s`, `1979 TFLOP/s dense`, `450 GB/s uni`.

A quantity is text, so that a file says what it means and a wrong unit is found when the file is read. Everything
is kept in base units: FLOP/s, B/s, B, s, USD/h, 1/s. Prefixes are decimal (GB = 1e9 B) unless written GiB.
"""

import math
import re

from mortice.specs.errors import RequestError

DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
BINARY = {f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGT", start=1)}
SMALL = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}

# dimension -> unit text -> factor to the base unit
UNITS: dict[str, dict[str, float]] = {
    "FLOP/s": {f"{p}{unit}/s": f for p, f in DECIMAL.items() for unit in ("FLOP", "OP")},
    "B/s": {f"{p}B/s": f for p, f in DECIMAL.items()} | {f"{p}b/s": f / 8 for p, f in DECIMAL.items()},
    "B": {f"{p}B": f for p, f in (DECIMAL | BINARY).items()},
    "s": {f"{p}s": f for p, f in SMALL.items()},
    "USD/h": {"USD/h": 1.0},
    "exp/s": {f"{p}exp/s": f for p, f in DECIMAL.items()},
    "count": {"packages": 1.0, "package": 1.0, "dies": 1.0, "die": 1.0},
}
SHAPE = re.compile(r"([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s+(\S+)(?:\s+(\S+))?")


def quantity(
    text: object, dimension: str, field: str, qualifiers: tuple[str, ...] = (), *, zero: bool = False
) -> tuple[float, str]:
    """(value in base units, qualifier) of `text`; with `qualifiers` exactly one of them must follow the unit.

    Raises RequestError naming `field` for another dimension, a missing or foreign qualifier, a number that is
    negative, not finite, or zero where `zero` is not allowed.
    """
    units = UNITS[dimension]
    shown = next(iter(units)) if dimension == "count" else dimension
    example = f"a number, a unit of {shown}" + (f" and {' or '.join(qualifiers)}" if qualifiers else "")
    match = SHAPE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise RequestError(f"{field} must be {example}, got {text!r}", param=field)
    number, unit, qualifier = float(match[1]), match[2], match[3] or ""
    if unit not in units:
        raise RequestError(f"{field} has the unit {unit!r}; it must be {example}", param=field)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise RequestError(f"{field} must be {'at least' if zero else 'above'} 0, got {text!r}", param=field)
    if qualifiers and qualifier not in qualifiers:
        raise RequestError(
            f"{field} must say {' or '.join(qualifiers)} after the unit: {text!r}", param=field
        )
    if not qualifiers and qualifier:
        raise RequestError(f"{field} has {qualifier!r} after the unit, which says nothing here", param=field)
    return number * units[unit], qualifier if qualifiers else unit
