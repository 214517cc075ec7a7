"""From the bytes of a body to a checked struct, or a RequestError that names the field.

The good case is one pass of msgspec. Only when that fails is the body looked at more slowly, to say what is
wrong.
"""

import re
from functools import cache
from typing import TypeVar

import msgspec

from mortice.serve.fields import BY_ROUTE
from mortice.specs.errors import RequestError

S = TypeVar("S", bound=msgspec.Struct)

MAX_DEPTH = 64
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$(.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*?)`(?: - at `\$(.*)`)?", re.DOTALL)
_WRONG = re.compile(r"(.*?)(?: - at `\$(.*)`)?", re.DOTALL)


def parse(data: bytes, kind: type[S], route: str | None = None) -> S:
    """The body as `kind`. `route`: a route of fields.py whose refused fields are to be named as such."""
    _check_depth(data)
    try:
        body: S = decoder(kind).decode(data)
        return body
    except msgspec.ValidationError as error:
        return _explain(data, kind, route, error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(data, error) from error


@cache
def decoder(kind: type[S]) -> msgspec.json.Decoder[S]:
    return msgspec.json.Decoder(kind)


def _explain(data: bytes, kind: type[S], route: str | None, error: msgspec.ValidationError) -> S:
    """Raise what is wrong with the body; or return it, if all that was wrong are refused fields that ask for
    nothing.
    """
    try:
        value = msgspec.json.decode(data)
    except msgspec.ValidationError:  # a number beyond a double
        raise RequestError("a number is out of range", code="invalid_json") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as broken:
        raise _malformed(data, broken) from broken
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    fields = BY_ROUTE.get(route or "", {})
    for name in list(value):
        field = fields.get(name)
        if field is not None and field.status == "refused":
            if value[name] is not None and value[name] not in field.neutral:
                raise RequestError(
                    f"{name} is not supported: {field.note}", param=name, code="unsupported_parameter"
                )
            del value[name]
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as wrong:
        raise _describe(str(wrong)) from wrong


def _describe(message: str) -> RequestError:
    if found := _UNKNOWN.fullmatch(message):
        name = _join(found[2], found[1])
        return RequestError(f"unknown field {name}", param=name, code="unknown_parameter")
    if found := _MISSING.fullmatch(message):
        name = _join(found[2], found[1])
        return RequestError(f"{name} is required", param=name, code="missing_required_parameter")
    found = _WRONG.fullmatch(message)
    assert found is not None  # the pattern matches every text
    name = _join(found[2], "")
    what = found[1][:1].lower() + found[1][1:]
    return RequestError(f"{name or 'the body'}: {what}", param=name or None)


def _join(place: str | None, name: str) -> str:
    """msgspec's `.a.b[0]` and a field of it as `a.b[0].c`, cut to a sane length."""
    path = f"{place or ''}.{name}" if name else place or ""
    path = path.lstrip(".")
    return path if len(path) <= 200 else path[:200] + "…"


def _check_depth(data: bytes) -> None:
    """Refuse nesting that would take our own stack, or that of whoever walks the value later."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _BRACKETS.finditer(data):
        first = found[0][:1]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise RequestError(
                    f"the body is nested deeper than {MAX_DEPTH} at byte {found.start()}", code="invalid_json"
                )
        elif first in b"]}":
            depth -= 1


def _malformed(data: bytes, error: Exception) -> RequestError:
    """A body that is no JSON: 400 with the place."""
    try:
        text = data.decode()
    except UnicodeDecodeError as bad:
        message = f"the body is not UTF-8: byte {bad.start} is 0x{data[bad.start]:02x}"
        return RequestError(message, code="invalid_json")
    if not text.strip():
        return RequestError("the body is empty; a JSON object was expected", code="invalid_json")
    if found := re.search(r"\\u[dD][89a-fA-F]", text):
        place = len(text[: found.start()].encode())
        message = f"the body is not JSON: the \\u escape at or after byte {place} is half a character"
        return RequestError(message, code="invalid_json")
    return RequestError(f"the body is not JSON: {_lower(str(error))}", code="invalid_json")


def _lower(message: str) -> str:
    return message.removeprefix("JSON is malformed: ")
