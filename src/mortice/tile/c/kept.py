"""Packed operands that a thread keeps from block to block.

A block walks over K with one tile of an operand after the other. The next block often wants the same tiles again (the
same columns of B beside other rows of A; the same keys beside other queries). So a tile that comes from a tensor nothing
writes, and whose place does not hang on the grid's fastest variable, gets a slot for each step of its walk, and a slot
whose key (the tile's offsets) is the one wanted is not packed again.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mortice.tile.c.names import name, storage
from mortice.tile.c.writer import Writer
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk

SLOTS = 64  # at most, of a tile
BYTES = 8 << 20  # at most, of a tile's slots


@dataclass(frozen=True)
class Kept:
    """A packed tile, the copy that fills it, and along which dimension of its tensor it walks."""

    copy: s.Copy
    axis: int
    bytes: int

    @property
    def name(self) -> str:
        return self.copy.target.buffer.name

    @property
    def extent(self) -> e.Expr:
        return self.copy.source.extents[self.axis]

    def declare(self, out: Writer, c: Callable[[e.Expr], str]) -> None:
        """How many slots it gets, which depends on the length of the walk, and their keys: one set a thread."""
        at, limit = name(self.name), max(1, min(SLOTS, BYTES // self.bytes))
        steps = c(build.ceildiv(self.copy.source.buffer.shape[self.axis], self.extent))
        out.line(
            f"const int64_t {at}slots__ = run > 1 ? MAX((int64_t)1, MIN((int64_t){limit}, {steps})) : 1;"
        )

    def keys(self, out: Writer, place: str) -> None:
        """place: bytes before the slots in the thread's memory."""
        at, kind = name(self.name), storage(self.copy.target.buffer.dtype)
        out.line(f"{kind} *const {at}ring__ = ({kind} *)(memory + {place});")
        out.line(f"int64_t {at}keys__[{SLOTS}][{len(self.copy.source.offsets)}];")
        out.line(f"memset({at}keys__, -1, sizeof {at}keys__);")

    def choose(self, out: Writer, c: Callable[[e.Expr], str]) -> None:
        """Opens a block that runs if the slot holds another tile."""
        at, offsets = name(self.name), [c(offset) for offset in self.copy.source.offsets]
        out.line(f"const int64_t slot__ = {offsets[self.axis]} / {c(self.extent)} % {at}slots__;")
        out.line(f"int64_t *const key__ = {at}keys__[slot__];")
        out.line(f"{at} = {at}ring__ + slot__ * {self.bytes // self.copy.target.buffer.dtype.bytes};")
        tests = " || ".join(f"key__[{i}] != {offset}" for i, offset in enumerate(offsets))
        out.line(f"if ({tests}) {{", open=True)
        out.line(" ".join(f"key__[{i}] = {offset};" for i, offset in enumerate(offsets)))


def kept(launch: s.Launch, function: s.Function, size: Callable[[e.Buffer], int]) -> dict[str, Kept]:
    """By the name of the tile."""
    read_only = {tensor.buffer.name for tensor in function.tensors if not (tensor.written or tensor.result)}
    varying = _varying(launch)
    found: dict[str, list[s.Copy]] = {}
    for node in walk(launch.body):
        if isinstance(node, s.Copy) and node.target.buffer.scope.startswith("panels_"):
            found.setdefault(node.target.buffer.name, []).append(node)
    made = {}
    for tile, copies in found.items():
        source, target = copies[0].source, copies[0].target
        mentioned = {node.name for at in source.offsets for node in walk(at) if isinstance(node, e.Var)}
        whole = target.kept == (0, 1) and source.buffer.name in read_only
        if len(copies) == 1 and whole and not mentioned & varying:
            deep = 0 if target.buffer.scope == "panels_b" else 1
            made[tile] = Kept(copies[0], source.kept[deep], size(target.buffer))
    return made


def _varying(launch: s.Launch) -> set[str]:
    """The grid's fastest variable and what is computed from it, or assigned."""
    names = {launch.vars[0].name}
    for node in walk(launch.body):
        if isinstance(node, s.Assign):
            names.add(node.var.name)
        if isinstance(node, s.Let):
            inner = {x.name for x in walk(node.value) if isinstance(x, e.Var)}
            if node.mutable or inner & names:
                names.add(node.var.name)
    return names
