"""Where a model's tensors come from, and the slots of a model that they fill."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

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

    def tensor(self, name: str) -> Tensor:
        """In any floating dtype. Raises RequestError if the bytes cannot be read."""

    def codes(self, name: str) -> GroupCodes | None:
        """The tensor as it is stored, if that is in groups of 4 bits."""


class TensorsSource:
    """Tensors handed over by the caller."""

    def __init__(self, tensors: Mapping[str, Tensor], label: str = "weights") -> None:
        self.tensors = tensors
        self.label = label

    def names(self) -> Iterable[str]:
        return self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def codes(self, name: str) -> GroupCodes | None:
        return None


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
    for name in sorted(present - wanted):
        if not ignored(name):
            raise RequestError(f"{source.label}: tensor {name} has no place in this model", param=name)
