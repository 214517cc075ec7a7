"""Plain values into a struct, with mistakes told in one line: which field, and what it may be."""

import re
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from mortice.specs.errors import RequestError

T = TypeVar("T")

_PLACE = re.compile(r"(.*?) - at `\$\.?(.*)`", re.DOTALL)


def checked(values: Any, kind: type[T]) -> T:
    """`values` (dicts, lists, scalars) as `kind`. Raises RequestError with the path of the field as `param`; a wrong choice
    is told what it may choose from.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        found = _PLACE.fullmatch(str(error))
        place = found[2] if found else ""
        what = found[1] if found else str(error)
        if (
            what.startswith("Invalid enum value") and "[" not in place
        ):  # a path through a list cannot be followed
            choices = ", ".join(map(str, _choices(kind, place)))
            what = f"{_at(values, place)!r} is not one of {choices}"
        raise RequestError(f"{place}: {what}" if place else what, param=place or None) from error


def _choices(kind: Any, place: str) -> tuple[Any, ...]:
    """What the Literal at the end of the path allows; optional ones without their None."""
    for name in place.split("."):
        structs = [kind, *get_args(kind)]
        kind = next(get_type_hints(k)[name] for k in structs if isinstance(k, type) and hasattr(k, name))
    return tuple(
        choice
        for option in [kind, *get_args(kind)]
        if get_origin(option) is Literal
        for choice in get_args(option)
    )


def _at(values: Any, place: str) -> Any:
    for name in place.split("."):
        values = values[name]
    return values
