"""Carries out statements. Parallel loops run all iterations at once, statement by statement, under a mask."""

from typing import Any

import numpy as np

from mortice.tile.diagnostics import CheckError, Span, UnsupportedError
from mortice.tile.host import Bound
from mortice.tile.interpreter.evaluate import Evaluator
from mortice.tile.interpreter.formats import arithmetic, decode
from mortice.tile.interpreter.storage import Race, Tensor, Tile
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk

FOLDS: dict[str, Any] = {
    "sum": np.add, "max": np.fmax, "min": np.fmin, "absmax": np.fmax, "any": np.logical_or, "all": np.logical_and,
}  # fmt: skip
ATOMIC = {"add": np.add, "max": np.maximum, "min": np.minimum}


def interpret(function: s.Function, bound: Bound, seed: int = 0) -> None:
    """Runs the kernel; results are in the tensors afterwards. Blocks come in an order drawn from `seed`. Raises
    CheckError at the first wrong access, with its place in the source."""
    _check_aliases(function, bound)
    with np.errstate(all="ignore"):
        _Machine(function, bound, seed).block(function.body)


class _Machine(Evaluator):
    def __init__(self, function: s.Function, bound: Bound, seed: int) -> None:
        memory: dict[str, Tensor | Tile] = {
            p.buffer.name: Tensor(p.buffer, bound.tensors[p.buffer.name].raw(), p.written)
            for p in function.tensors
        }
        scalars = {
            param.var.name: arithmetic(param.var.dtype)(bound.dims[param.var.name])
            for param in function.params
            if isinstance(param, s.Scalar)
        }
        super().__init__(memory, {**bound.dims, **scalars})
        self.random = np.random.default_rng(seed)

    def block(self, block: s.Block) -> None:
        for statement in block:
            self.statement(statement)

    def statement(self, x: s.Stmt) -> None:  # noqa: C901 - a table of all statements
        match x:
            case s.Launch():
                self.launch(x)
            case s.For():
                self.loop(x)
            case s.Parallel():
                self.parallel(x)
            case s.If():
                self.branch(x)
            case s.While():
                while self.uniform(self.value(x.condition), x.span, "while"):
                    self.block(x.body)
            case s.Let():
                self.names[x.var.name] = self.held(self.value(x.value), x.var)
            case s.Assign():
                new = self.held(self.value(x.value), x.var)
                old = self.names[x.var.name]
                self.names[x.var.name] = new if self.mask is None else np.where(self.mask, new, old)
            case s.Alloc():
                private = x.buffer.scope == "local" and self.lanes is not None
                self.memory[x.buffer.name] = Tile(x.buffer, (self.lanes or ()) if private else ())
            case s.Store():
                self.store(x.buffer, x.indices, self.value(x.value), x.span)
            case s.Copy():
                self.write(x.target, self.read(x.source, self.value(x.pad)), x.span)
            case s.Fill():
                shape = self.extents(x.target)
                self.write(x.target, np.broadcast_to(np.asarray(self.value(x.value)), shape), x.span)
            case s.Gemm():
                self.gemm(x)
            case s.Reduce():
                self.reduce(x)
            case s.Scan():
                values = self.read(x.source)
                values = np.flip(values, x.axis) if x.reverse else values
                folded = FOLDS[x.op].accumulate(values, axis=x.axis, dtype=values.dtype)
                self.write(x.target, np.flip(folded, x.axis) if x.reverse else folded, x.span)
            case s.Atomic():
                self.atomic(x)
            case s.Print():
                print(x.label, *(self.shown(value) for value in x.values))
            case s.Breakpoint():
                self.stop(x.span)
            case s.Check():
                if not np.all(self.value(x.condition)):
                    raise CheckError(
                        x.span, "assert", f"`{x.message}` does not hold", "mend the kernel or its arguments"
                    )
            case _:
                raise UnsupportedError(
                    x.span, type(x).__name__, "the interpreter runs tile IR", "interpret before lowering"
                )

    def launch(self, x: s.Launch) -> None:
        shape = [max(0, int(self.value(extent))) for extent in x.extents]
        for tensor in self.memory.values():
            if isinstance(tensor, Tensor):
                tensor.new_launch()
        kept = dict(self.memory), dict(self.names)
        for block in self.random.permutation(int(np.prod(shape))):
            self.memory, self.names = dict(kept[0]), dict(kept[1])
            self.block_id = int(block)
            for var, value in zip(x.vars, np.unravel_index(block, shape), strict=True):
                self.names[var.name] = np.int64(value)
            self.block(x.body)
        self.memory, self.names = kept

    def loop(self, x: s.For) -> None:
        ends = [self.value(end) for end in (x.start, x.stop, x.step)]
        if np.any(np.asarray(ends[2]) == 0):
            raise CheckError(x.span, "range", "its step is 0", "give another step")
        if all(np.ndim(end) == 0 for end in ends):
            for value in range(*(int(end) for end in ends)):
                self.names[x.var.name] = np.int64(value)
                self.block(x.body)
            return
        start, stop, step = ends  # each lane has ends of its own
        outer, at = self.mask, start
        while True:
            active = np.broadcast_to((at < stop) if np.all(step > 0) else (at > stop), self.lanes or ())
            self.mask = active if outer is None else active & outer
            if not self.mask.any():
                break
            self.names[x.var.name] = at
            self.block(x.body)
            at = at + step
        self.mask = outer

    def parallel(self, x: s.Parallel) -> None:
        shape = tuple(int(self.value(extent)) for extent in x.extents)
        stored = {node.buffer.name for node in walk(x.body) if isinstance(node, s.Store)}
        made = {node.buffer.name for node in walk(x.body) if isinstance(node, s.Alloc)}
        self.lanes, self.mask = shape, None
        self.races = {name: Race(name, self.shape_of(name)) for name in stored - made}
        for axis, var in enumerate(x.vars):
            sides = [1] * len(shape)
            sides[axis] = -1
            self.names[var.name] = np.arange(shape[axis]).reshape(sides)
        if 0 not in shape:
            self.block(x.body)
        self.lanes, self.mask, self.races = None, None, {}

    def branch(self, x: s.If) -> None:
        condition = self.value(x.condition)
        if np.ndim(condition) == 0:
            self.block(x.then if condition else x.otherwise)
            return
        outer = self.mask
        for taken, body in ((condition, x.then), (~condition, x.otherwise)):
            self.mask = np.broadcast_to(taken, self.lanes or ()) & (True if outer is None else outer)
            if body and self.mask.any():
                self.block(body)
        self.mask = outer

    def gemm(self, x: s.Gemm) -> None:
        a, b = self.read(x.a), self.read(x.b)
        a, b = a.T if x.transpose_a else a, b.T if x.transpose_b else b
        product = a @ b
        self.write(x.c, product if x.clear else self.read(x.c) + product, x.span)

    def reduce(self, x: s.Reduce) -> None:
        values = self.read(x.source)
        values = np.abs(values) if x.op == "absmax" else values
        folded = FOLDS[x.op].reduce(values, axis=x.axis)
        self.write(x.target, folded if x.clear else FOLDS[x.op](self.read(x.target), folded), x.span)

    def atomic(self, x: s.Atomic) -> None:
        index, values, inside = self.placed(x.buffer, x.indices, self.value(x.value), x.span)
        memory = self.memory[x.buffer.name]
        for where in range(values.size):  # one after the other: elements may repeat
            if inside[where]:
                at = tuple(axis[where : where + 1] for axis in index)
                if isinstance(memory, Tensor):
                    old = memory.load(at, self.block_id, x.span)
                    new = ATOMIC[x.op](old, values[where])
                    memory.store(at, new, self.block_id, x.span, atomic=True)
                else:
                    memory.store(at, ATOMIC[x.op](memory.load(at, x.span), values[where]))

    def shown(self, value: e.Expr | e.Buffer) -> object:
        if isinstance(value, e.Expr):
            return self.value(value)
        memory = self.memory[value.name]  # to look at is not to read: no check of who wrote it
        return memory.data if isinstance(memory, Tile) else decode(memory.raw, value.dtype)

    def stop(self, span: Span) -> None:
        """The debugger, at the line of the kernel, with its names."""
        names = dict(self.names) | {name: self.shown(memory.buffer) for name, memory in self.memory.items()}
        exec(compile("\n" * (span.line - 1) + "breakpoint()", span.file, "exec"), names)


def _check_aliases(function: s.Function, bound: Bound) -> None:
    """Tensors that a kernel writes overlap no other argument, unless both are the same view (in place)."""
    tensors = [(p, bound.tensors[p.buffer.name]) for p in function.tensors]
    for param, mine in tensors:
        for _, other in tensors:
            same = (mine.pointer, mine.shape, mine.strides) == (other.pointer, other.shape, other.strides)
            if not param.written or mine is other or same or 0 in (*mine.shape, *other.shape):
                continue
            if np.shares_memory(mine.raw(), other.raw()):
                problem = f"{param.buffer.name} is written and overlaps another argument"
                raise CheckError(function.span, function.name, problem, "pass tensors that lie apart")
