"""Where a model's tensors come from, and the slots of a model that they fill."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mortice.specs.errors import RequestError


@dataclass(frozen=True, slots=True)
class GroupCodes:
    """A weight kept in 4 bits: w[n, k] = (code - 8) * scale + zero, with one scale and zero for 32
    columns."""

    codes: Tensor  # [N, K] uint8, 0 to 15
    scale: Tensor  # [N, K / 32] float32
    zero: Tensor  # [N, K / 32] float32


class Source(Protocol):
    """Tensors by their Hugging Face names, read when asked for."""

    label: str  # the file or folder, for messages

    def names(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def check(self, name: str) -> None:
        """Raise RequestError if `tensor` could not give this one."""

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """As `dtype`; may be the source's own memory, to be copied and not written to."""

    def codes(self, name: str) -> GroupCodes | None:
        """The tensor as it is stored, if that is in groups of 4 bits."""

    def bits(self, name: str) -> float:
        """That a number of the tensor is stored in, its share of scales included."""


class TensorsSource:
    """Tensors handed over by the caller."""

    def __init__(self, tensors: Mapping[str, Tensor], label: str = "weights") -> None:
        self.tensors = tensors
        self.label = label

    def names(self) -> Iterable[str]:
        return self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def check(self, name: str) -> None:
        if not self.tensors[name].is_floating_point():
            dtype = self.tensors[name].dtype
            raise RequestError(
                f"{self.label}: tensor {name} is {dtype}, expected a floating dtype", param=name
            )

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.tensors[name].to(dtype)

    def codes(self, name: str) -> GroupCodes | None:
        return None

    def bits(self, name: str) -> float:
        return 8 * self.tensors[name].element_size()


class StackedExperts:
    """Another source whose tensors [experts, rows, columns] called A.weight are given out as A.0.weight,
    A.1.weight."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.label = source.label
        self.where: dict[str, tuple[str, int]] = {}
        for name in source.names():
            shape = source.shape(name)
            if len(shape) == 3 and name.endswith(".weight"):
                stem = name.removesuffix(".weight")
                self.where |= {f"{stem}.{expert}.weight": (name, expert) for expert in range(shape[0])}
            else:
                self.where[name] = (name, -1)

    def names(self) -> Iterable[str]:
        return self.where

    def shape(self, name: str) -> tuple[int, ...]:
        held, expert = self.where[name]
        shape = self.source.shape(held)
        return shape if expert < 0 else shape[1:]

    def check(self, name: str) -> None:
        self.source.check(self.where[name][0])

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        held, expert = self.where[name]
        found = self.source.tensor(held, dtype)
        return found if expert < 0 else found[expert]

    def codes(self, name: str) -> GroupCodes | None:
        held, expert = self.where[name]
        return self.source.codes(held) if expert < 0 else None

    def bits(self, name: str) -> float:
        return self.source.bits(self.where[name][0])


class Renamed:
    """Another source with a prefix taken off its names; tensors without the prefix are left out."""

    def __init__(self, source: Source, prefix: str, instead: str) -> None:
        self.source = source
        self.label = source.label
        self.where = {instead + n.removeprefix(prefix): n for n in source.names() if n.startswith(prefix)}

    def names(self) -> Iterable[str]:
        return self.where

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(self.where[name])

    def check(self, name: str) -> None:
        self.source.check(self.where[name])

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.source.tensor(self.where[name], dtype)

    def codes(self, name: str) -> GroupCodes | None:
        return self.source.codes(self.where[name])

    def bits(self, name: str) -> float:
        return self.source.bits(self.where[name])


def text_part(source: Source) -> Source:
    """The language model inside a checkpoint that has other towers too, under the names it has when alone."""
    names = list(source.names())
    for prefix, instead in (("language_model.", ""), ("model.language_model.", "model.")):
        if any(name.startswith(prefix) for name in names):
            return Renamed(source, prefix, instead)
    return source


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a model and the checkpoint tensors that fill it together."""

    shapes: Mapping[str, tuple[int, ...]]  # name to expected shape, in the order in which they are laid down
    fill: Callable[[Source], None]


def check_source(source: Source, slots: Iterable[Slot], ignored: Callable[[str], bool]) -> None:
    """Raise RequestError unless the source has exactly the tensors the slots want, in their shapes."""
    present = set(source.names())
    wanted = set()
    for slot in slots:
        for name, shape in slot.shapes.items():
            wanted.add(name)
            if name not in present:
                raise RequestError(f"{source.label}: tensor {name} is missing", param=name)
            if source.shape(name) != shape:
                found = list(source.shape(name))
                raise RequestError(
                    f"{source.label}: tensor {name} is {found}, expected {list(shape)}", param=name
                )
            source.check(name)
    for name in sorted(present - wanted):
        if not ignored(name):
            raise RequestError(f"{source.label}: tensor {name} has no place in this model", param=name)
