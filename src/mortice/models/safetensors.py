"""Reads the tensors of a Hugging Face folder: one safetensors file, or shards under an index."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mortice.models.source import GroupCodes
from mortice.specs.errors import RequestError


class SafetensorsSource:
    """Files are mapped, not read: a tensor's pages are touched when it is asked for and can be dropped
    after."""

    def __init__(self, folder: Path, name: str = "model.safetensors") -> None:
        self.label = str(folder)
        self.files: dict[Path, Any] = {}
        self.where: dict[str, Path] = {}
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            self.where = dict.fromkeys(self.open(folder / name).keys(), folder / name)
        elif index.is_file():
            for tensor, shard in read_index(index).items():
                self.where[tensor] = folder / shard
            for path in sorted(set(self.where.values())):
                held = set(self.open(path).keys())
                for tensor in (t for t, p in self.where.items() if p == path and t not in held):
                    raise RequestError(
                        f"{path}: tensor {tensor} is in the index but not in the file", param=tensor
                    )
        else:
            raise RequestError(f"{folder}: neither {name} nor {index.name} is there", param="model")

    def open(self, path: Path) -> Any:
        if path not in self.files:
            if not path.is_file():
                raise RequestError(f"{path}: the index names this file but it is not there", param="model")
            try:
                self.files[path] = safe_open(str(path), framework="pt")
            except (SafetensorError, OSError) as error:
                raise RequestError(f"{path}: not a whole safetensors file: {error}", param="model") from error
        return self.files[path]

    def names(self) -> Iterable[str]:
        return self.where

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.open(self.where[name]).get_slice(name).get_shape())

    def check(self, name: str) -> None:
        path = self.where[name]
        dtype = self.open(path).get_slice(name).get_dtype()
        if dtype not in ("F64", "F32", "F16", "BF16"):
            raise RequestError(
                f"{path}: tensor {name} is {dtype}, expected F64, F32, F16 or BF16", param=name
            )

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        found: Tensor = self.open(self.where[name]).get_tensor(name)
        return found.to(dtype)

    def codes(self, name: str) -> GroupCodes | None:
        return None

    def bits(self, name: str) -> float:
        return float(self.open(self.where[name]).get_slice(name).get_dtype().lstrip("BF"))


def read_index(path: Path) -> dict[str, str]:
    """The weight_map of a shard index: tensor name to file name, never outside the folder."""
    try:
        mapping = json.loads(path.read_text())["weight_map"]
        whole = all(isinstance(t, str) and Path(f).name == f for t, f in mapping.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path}: not a shard index: {error!r}", param="model") from error
    if not whole:
        raise RequestError(
            f"{path}: weight_map must map tensor names to file names in this folder", param="model"
        )
    return dict(mapping)
