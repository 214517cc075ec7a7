"""JSON on its way out: ASCII only, since some clients split lines on U+2028 and every transport carries
ASCII.
"""

import re
from json.encoder import encode_basestring_ascii
from typing import Any

import msgspec

_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")


def as_json(value: Any) -> bytes:
    """Encode structs, dicts, lists and plain values."""
    data = msgspec.json.encode(value)
    if data.isascii():
        return data
    # Beyond ASCII there are only characters of strings, so each run may be escaped where it stands.
    return _BEYOND_ASCII.sub(lambda run: quoted(run[0])[1:-1], data.decode()).encode()


def quoted(text: str) -> str:
    """`text` as a JSON string of ASCII characters, with its quotes."""
    return encode_basestring_ascii(text)
