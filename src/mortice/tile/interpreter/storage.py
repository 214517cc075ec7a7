"""Memory of the interpreter: tensors in place, tiles with a note of what has been written."""

import numpy as np

from mortice.tile.diagnostics import CheckError, Span
from mortice.tile.interpreter.formats import arithmetic, decode, encode, rounded
from mortice.tile.ir.expr import Buffer

Index = tuple[np.ndarray, ...]


class Tensor:
    """A global tensor. owner: which block wrote each element in this launch (-1: none); only if any block writes."""

    def __init__(self, buffer: Buffer, raw: np.ndarray, watched: bool) -> None:
        self.buffer, self.raw = buffer, raw
        self.owner = np.full(raw.shape, -1, np.int64) if watched else None

    def load(self, index: Index, block: int, span: Span) -> np.ndarray:
        if self.owner is not None:
            self._check(index, block, span, "reads")
        return decode(self.raw[index], self.buffer.dtype)

    def store(self, index: Index, values: np.ndarray, block: int, span: Span, atomic: bool = False) -> None:
        if self.owner is not None and not atomic:
            self._check(index, block, span, "writes")
            self.owner[index] = block
        self.raw[index] = encode(values, self.buffer.dtype)

    def new_launch(self) -> None:
        if self.owner is not None:
            self.owner.fill(-1)

    def _check(self, index: Index, block: int, span: Span, verb: str) -> None:
        assert self.owner is not None
        owner = self.owner[index]
        if ((owner != -1) & (owner != block)).any():
            problem = f"block {block} {verb} an element of {self.buffer.name} that another block wrote"
            raise CheckError(
                span, self.buffer.name, problem, "let one block own each element, or use an atomic"
            )


class Tile:
    """An on-chip tile, or one for each lane of a parallel loop (`lanes`)."""

    def __init__(self, buffer: Buffer, lanes: tuple[int, ...] = ()) -> None:
        self.buffer, self.lanes = buffer, lanes
        shape = lanes + buffer.extents
        self.data: np.ndarray = np.zeros(shape, arithmetic(buffer.dtype))
        self.ready = np.zeros(shape, bool)

    def load(self, index: Index, span: Span) -> np.ndarray:
        if not self.ready[index].all():
            problem = "an element is read that was never written"
            raise CheckError(span, self.buffer.name, problem, "fill the tile first (fill=0 where it is made)")
        values: np.ndarray = self.data[index]
        return values

    def store(self, index: Index, values: np.ndarray) -> None:
        self.data[index] = rounded(values, self.buffer.dtype)
        self.ready[index] = True


class Race:
    """Who touched each element of a tile or tensor within one parallel loop. -1 nobody, -2 several."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name = name
        self.writer, self.reader = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)

    def read(self, index: Index, lanes: np.ndarray, span: Span) -> None:
        writer = self.writer[index]
        if ((writer != -1) & (writer != lanes)).any():
            self._fail(span, "one iteration reads what another writes")
        seen = self.reader[index]
        self.reader[index] = np.where((seen == -1) | (seen == lanes), lanes, -2)
        # Several lanes of one statement may read one element; fancy assignment keeps only the last of them.
        flat = np.ravel_multi_index(index, self.reader.shape)
        values, counts = np.unique(flat, return_counts=True)
        self.reader.reshape(-1)[values[counts > 1]] = -2

    def write(self, index: Index, lanes: np.ndarray, span: Span) -> None:
        flat = np.ravel_multi_index(index, self.writer.shape)
        if len(np.unique(flat)) != flat.size:
            self._fail(span, "two iterations write one element")
        writer, reader = self.writer[index], self.reader[index]
        if ((writer != -1) & (writer != lanes)).any():
            self._fail(span, "two iterations write one element")
        if ((reader != -1) & (reader != lanes)).any():
            self._fail(span, "one iteration writes what another reads")
        self.writer[index] = lanes

    def _fail(self, span: Span, problem: str) -> None:
        raise CheckError(
            span, self.name, f"in this parallel loop {problem}", "use a reduction, another tile, or two loops"
        )
