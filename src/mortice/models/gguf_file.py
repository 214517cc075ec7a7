"""Reads the header of a GGUF file and maps its tensors (format: docs/gguf.md of the ggml project, versions 2
and 3).

The gguf package's own reader turns each of a vocabulary's tokens into an array of its own, which takes longer
than everything else at start; this one skips what a model does not need.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from mortice.specs.errors import RequestError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LONGEST_ARRAY = 256  # longer ones are vocabularies and merges


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # as in PyTorch: slowest dimension first
    start: int  # bytes from the start of the file
    num_bytes: int


class GGUFFile:
    """`metadata`: scalars, strings and short arrays by key. `tensors`: by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise RequestError(f"{path}: cannot be read: {error}", param="model") from error
        if self.bytes[:4] != b"GGUF":
            raise RequestError(f"{path}: not a GGUF file", param="model")
        self.at = 4
        try:
            self.metadata, self.tensors = self.read_header()
        except (struct.error, UnicodeDecodeError, ValueError, KeyError, IndexError) as error:
            raise RequestError(
                f"{path}: the header is cut off or broken near byte {self.at}", param="model"
            ) from error

    def read_header(self) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
        version = self.scalar("I")
        if version not in (2, 3):
            raise RequestError(
                f"{self.path}: GGUF version {version} is not supported (2 and 3 are)", param="model"
            )
        num_tensors, num_values = self.scalar("Q"), self.scalar("Q")
        metadata = {}
        for _ in range(num_values):
            key = self.string()
            metadata[key] = self.value(self.scalar("I"))
        entries = [self.entry() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        base = -(-self.at // alignment) * alignment
        return metadata, {
            name: self.place(name, kind, shape, base + offset) for name, kind, shape, offset in entries
        }

    def entry(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self.string()
        dims = [self.scalar("Q") for _ in range(self.scalar("I"))]
        return name, self.scalar("I"), tuple(reversed(dims)), self.scalar("Q")

    def place(self, name: str, kind: int, shape: tuple[int, ...], start: int) -> GGUFTensor:
        try:
            known = GGMLQuantizationType(kind)
        except ValueError as error:
            raise RequestError(f"{self.path}: tensor {name} has unknown type {kind}", param=name) from error
        per_block, block_bytes = GGML_QUANT_SIZES[known]
        count = int(np.prod(shape, dtype=object))
        if not shape or shape[-1] % per_block:
            raise RequestError(
                f"{self.path}: tensor {name} {list(shape)} does not fill blocks of {per_block}", param=name
            )
        num_bytes = count // per_block * block_bytes
        if start + num_bytes > len(self.bytes):
            raise RequestError(f"{self.path}: the file ends inside tensor {name}", param=name)
        return GGUFTensor(name, known, shape, start, num_bytes)

    def scalar(self, code: str) -> Any:
        (found,) = struct.unpack_from("<" + code, self.bytes, self.at)
        self.at += struct.calcsize("<" + code)
        return found

    def string(self) -> str:
        length = self.scalar("Q")
        if self.at + length > len(self.bytes):
            raise ValueError("string past the end of the file")
        text = self.bytes[self.at : self.at + length].decode()
        self.at += length
        return text

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if count > LONGEST_ARRAY:
            self.skip(inner, count)
            return None
        return [self.value(inner) for _ in range(count)]

    def skip(self, kind: int, count: int) -> None:
        if kind in SCALARS:
            self.at += count * struct.calcsize("<" + SCALARS[kind])
        else:
            for _ in range(count):
                self.at += 8 + struct.unpack_from("<Q", self.bytes, self.at)[0] if kind == STRING else 0
        if self.at > len(self.bytes):
            raise ValueError("array past the end of the file")

    def rows(self, name: str) -> np.ndarray:
        """The tensor's bytes, uint8 [rows, bytes a row], mapped."""
        tensor = self.tensors[name]
        raw = np.frombuffer(self.bytes, np.uint8, tensor.num_bytes, tensor.start)
        return raw.reshape(-1, raw.size // max(1, int(np.prod(tensor.shape[:-1]))))
