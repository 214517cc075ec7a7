"""JSON without the `json` package, whose regular expressions cost each of the two processes more than a megabyte."""

import _json


class _Rules:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict = {}  # noqa: RUF012  the scanner asks for it by name


def _refuse(value):
    raise TypeError("%s cannot be sent" % type(value).__name__)


_scan = _json.make_scanner(_Rules)  # type: ignore[arg-type]
_chunks = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, True)


def loads(line):
    """The value of one line of JSON that begins with it."""
    text = line.decode("utf-8") if isinstance(line, (bytes, bytearray)) else line
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        raise ValueError("no JSON") from None
    if text[end:].strip():
        raise ValueError("more than one value")
    return value


def dumps(value):
    return "".join(_chunks(value, 0))
