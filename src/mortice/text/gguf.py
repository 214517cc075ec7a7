"""The metadata at the head of a GGUF file: keys and values, no tensors.

Layout (little endian): "GGUF", version u32, number of tensors u64, number of keys u64, then for each key its
name, the type of its value (u32) and the value. A string is its length in bytes (u64) and UTF-8; an array is
the type of its items, their number (u64) and the items.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from mortice.specs.errors import RequestError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def read_gguf_metadata(path: str | Path) -> dict[str, Any]:
    """All keys of the file's head; arrays are lists. Raises RequestError (param "model") if it is no GGUF
    file."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Head(view).read()
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise RequestError(f"{path} is not a GGUF file that can be read: {error}", param="model") from error
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}", param="model") from error


class _Head:
    def __init__(self, view: mmap.mmap) -> None:
        self.view = view
        self.at = 4

    def read(self) -> dict[str, Any]:
        if self.view[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self.number(_U32)
        if version not in (2, 3):
            raise ValueError(f"version {version} of the format is unknown (a big-endian file?)")
        self.number(_U64)  # tensors
        return {self.string(): self.value(self.number(_U32)) for _ in range(self.number(_U64))}

    def number(self, kind: struct.Struct) -> int:
        (number,) = kind.unpack_from(self.view, self.at)
        self.at += kind.size
        return int(number)

    def string(self) -> str:
        start = self.at + 8
        self.at = end = start + _U64.unpack_from(self.view, self.at)[0]
        if end > len(self.view):
            raise ValueError("a string runs past the end of the file")
        return self.view[start:end].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item_kind = self.number(_U32)
            return self.array(item_kind, self.number(_U64))
        return self.array(kind, 1)[0]

    def array(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return [
                self.string() for _ in range(count)
            ]  # each takes 8 bytes at least: the file bounds the loop
        if kind not in _SCALARS:
            raise ValueError(f"values of type {kind} are unknown")
        if count > len(self.view):
            raise ValueError("an array runs past the end of the file")
        layout = f"<{count}{_SCALARS[kind]}"
        items = list(struct.unpack_from(layout, self.view, self.at))
        self.at += struct.calcsize(layout)
        return items
