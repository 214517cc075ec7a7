"""Shared tiles as the copy engine and the matrix unit see them: panels of rows as wide as the swizzle.

A tile [rows, columns] is cut into panels of 128, 64 or 32 bytes of columns; in a panel rows follow one another, and the
16-byte chunks of a row are permuted by the row's number (PTX ISA, 5.5.7, swizzle modes).
"""

from dataclasses import dataclass

from mortice.tile.dtypes import DType
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.passes.gpu import arithmetic as a

SWIZZLES = (128, 64, 32)
ALIGNMENT = 1024


@dataclass(frozen=True, slots=True)
class SharedTile:
    """base: byte offset in shared memory of its first version; version: bytes from one to the next; slot: which version
    the current statement works on. width: of a panel in bytes, 0 for plain rows without swizzle. outer: extents of all
    dimensions but the last; rows is their product."""

    name: str
    rows: int
    columns: int
    dtype: DType
    width: int
    base: int = 0
    slot: e.Expr | None = None
    outer: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        return -(-self.rows * self.columns * self.dtype.bytes // ALIGNMENT) * ALIGNMENT

    @property
    def panel_columns(self) -> int:
        return self.width // self.dtype.bytes if self.width else self.columns

    @property
    def panels(self) -> int:
        return self.columns // self.panel_columns

    @property
    def panel_bytes(self) -> int:
        return self.rows * self.panel_columns * self.dtype.bytes

    @property
    def origin(self) -> e.Expr:
        return a.const(self.base) if self.slot is None else a.add(a.mul(self.slot, self.bytes), self.base)

    def address(self, row: e.Expr, column: e.Expr) -> e.Expr:
        """Byte offset of an element, the swizzle applied."""
        size = self.dtype.bytes
        if not self.width:
            return a.add(a.mul(a.add(a.mul(row, self.columns), column), size), self.origin)
        width = self.panel_columns
        panel, inner = a.digit(column, width, max(self.panels, 1)), a.digit(column, 1, width)
        if self.panels == 1:
            panel = a.const(0)
        chunk_size = 16 // size
        chunk = a.digit(inner, chunk_size, width // chunk_size)
        span = self.width // 16
        phase = a.digit(row, 8 // span, span)
        chunk = build.binary("xor", chunk, phase)
        within = a.digit(inner, 1, chunk_size)
        return a.add(
            a.mul(panel, self.panel_bytes),
            a.mul(row, self.width),
            a.mul(chunk, 16),
            a.mul(within, size),
            self.origin,
        )


def swizzle_for(columns: int, rows: int, dtype: DType) -> int:
    """The widest that divides a row; 0 where none does."""
    for width in SWIZZLES:
        if columns * dtype.bytes % width == 0 and rows % 8 == 0:
            return width
    return 0
