"""A loop of float arithmetic as explicit vectors of 16 lanes.

gcc vectorises plain loops as well, but calls a function for each vector of exponentials, gives up where one stands beside
a condition, rounds to 16 bits in integers, and adds up a fold's lanes one after the other. So loops with such functions or
numbers are written out, wherever the processor has the vectors (VECTORS in the prelude); others stay as they are.
"""

from mortice.tile import dtypes
from mortice.tile.c.expression import OURS, Expressions, strides
from mortice.tile.c.names import name
from mortice.tile.c.writer import Writer
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.passes.ranges import affine

LANES = 16
NARROW = (dtypes.bf16, dtypes.f16)
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
NEUTRAL = {"add": "0", "min": "INFINITY", "max": "-INFINITY"}
COMPARED = {"lt": "LT_OQ", "le": "LE_OQ", "gt": "GT_OQ", "ge": "GE_OQ", "eq": "EQ_OQ", "ne": "NEQ_UQ"}


class NoVector(Exception):
    """The loop has no form in lanes."""


def lanes(out: Writer, c: Expressions, body: s.Block, var: e.Var, low: str, high: str) -> bool:
    """Writes the loop over var, of which low .. high - 1 are its values, between `#ifdef VECTORS` and `#else`. False, and
    nothing written, if it has no such form or needs none."""
    if not any(_gains(node) for node in walk(body)):
        return False
    try:
        whole = _Lanes(c, body, var, None).lines(body)
        part = _Lanes(c, body, var, "here__").lines(body)
    except NoVector:
        return False
    v, folds = name(var.name), [x for x in body if isinstance(x, s.Assign)]
    out.line("#ifdef VECTORS")
    out.line(f"{{ int64_t {v} = {low}; const int64_t end_{v} = {high};", open=True)
    for fold in folds:
        out.line(f"__m512 {name(fold.var.name)}lanes__ = _mm512_set1_ps({NEUTRAL[_op(fold)]});")
    out.line(f"for (; {v} + {LANES} <= end_{v}; {v} += {LANES}) {{", open=True)
    for line in whole:
        out.line(line)
    out.close()
    out.line(f"if ({v} < end_{v}) {{", open=True)
    out.line(f"const __mmask16 here__ = first_lanes(end_{v} - {v});")
    for line in part:
        out.line(line)
    out.close()
    for fold in folds:
        total, op = name(fold.var.name), _op(fold)
        one = f"_mm512_reduce_{op}_ps({total}lanes__)"
        out.line(f"{total} = {f'{total} + {one}' if op == 'add' else f'{op.upper()}({total}, {one})'};")
    out.close()
    out.line("#else")
    return True


def _gains(node: object) -> bool:
    if isinstance(node, e.Load | s.Store):
        return node.buffer.dtype in NARROW
    return isinstance(node, e.Math) and node.name in OURS


def _op(fold: s.Assign) -> str:
    """Of `total = total + ...` and its like, whose loop has no other use of total."""
    match fold.value:
        case e.Binary(op="add" | "min" | "max" as op, left=left, right=right) if left == fold.var:
            if fold.var.dtype == dtypes.f32 and not any(node == fold.var for node in walk(right)):
                return op
    raise NoVector


class _Lanes:
    """mask: the name of the lanes that are there; None for all."""

    def __init__(self, c: Expressions, body: s.Block, var: e.Var, mask: str | None) -> None:
        self.c, self.var, self.mask = c, var, mask
        self.named: set[str] = set()
        self.folded: set[str] = set()
        self.stored = {node.buffer.name for node in walk(body) if isinstance(node, s.Store)}

    def lines(self, body: s.Block) -> list[str]:
        return [self.statement(x) for x in body]

    def statement(self, x: s.Stmt) -> str:
        match x:
            case s.Let(mutable=False) if x.var.dtype == dtypes.f32:
                text = self.vector(x.value)
                self.named.add(x.var.name)
                return f"const __m512 {name(x.var.name)} = {text};"
            case s.Assign(value=e.Binary(right=right)) if x.var.name not in self.folded:
                op, total, one = _op(x), f"{name(x.var.name)}lanes__", self.vector(right)
                self.folded.add(x.var.name)
                if self.mask:
                    return f"{total} = _mm512_mask_{op}_ps({total}, {self.mask}, {total}, {one});"
                return (
                    f"{total} = {f'{total} + {one}' if op == 'add' else f'_mm512_{op}_ps({one}, {total})'};"
                )
            case s.Store() if not self.guarded(x.buffer, x.indices, x.guards):
                return self.store(self.address(x.buffer, x.indices), x.buffer.dtype, self.vector(x.value))
        raise NoVector

    def store(self, at: str, dtype: dtypes.DType, text: str) -> str:
        if dtype == dtypes.f32:
            end = f"mask_storeu_ps({at}, {self.mask}, {text});" if self.mask else f"storeu_ps({at}, {text});"
            return "_mm512_" + end
        if dtype not in NARROW:
            raise NoVector
        text = f"lanes_to_{dtype}({text})"
        if self.mask:
            return f"_mm256_mask_storeu_epi16({at}, {self.mask}, {text});"
        return f"_mm256_storeu_si256((__m256i *)({at}), {text});"

    def load(self, at: str, dtype: dtypes.DType) -> str:
        if dtype == dtypes.f32:
            return f"_mm512_maskz_loadu_ps({self.mask}, {at})" if self.mask else f"_mm512_loadu_ps({at})"
        if dtype not in NARROW:
            raise NoVector
        half = f"_mm256_loadu_si256((const __m256i *)({at}))"
        if self.mask:
            half = f"_mm256_maskz_loadu_epi16({self.mask}, {at})"
        return f"lanes_from_{dtype}({half})"

    def guarded(self, buffer: e.Buffer, indices: tuple[e.Expr, ...], guards: tuple[bool, ...] | None) -> bool:
        return bool(self.c.guard(buffer, indices, guards))

    def address(self, buffer: e.Buffer, indices: tuple[e.Expr, ...]) -> str:
        """Of 16 neighbours."""
        if not indices or strides(buffer)[-1] != "1" or any(self.depends(x) for x in indices[:-1]):
            raise NoVector
        form = affine(indices[-1], {self.var.name: e.const(0)})
        if form is None or form[0].get(self.var.name) != 1 or self.depends(form[1]):
            raise NoVector
        if any(self.reads_stored(i) for i in indices):
            raise NoVector
        return f"{name(buffer.name)} + {self.c.offset(buffer, indices)}"

    def depends(self, x: e.Expr) -> bool:
        names = {node.name for node in walk(x) if isinstance(node, e.Var)}
        if names & self.folded:
            raise NoVector
        return self.var.name in names or bool(names & self.named)

    def vector(self, x: e.Expr) -> str:
        if not self.depends(x):
            if self.reads_stored(x):
                raise NoVector
            return f"_mm512_set1_ps((float)({self.c(x)}))"
        if not x.dtype.is_float or x.dtype == dtypes.f64:
            raise NoVector
        match x:
            case e.Var() if x.name in self.named:
                return name(x.name)
            case e.Load() if not self.guarded(x.buffer, x.indices, x.guards):
                return self.load(self.address(x.buffer, x.indices), x.buffer.dtype)
            case e.Binary(op="min" | "max"):
                return f"_mm512_{x.op}_ps({self.vector(x.left)}, {self.vector(x.right)})"
            case e.Binary() if x.op in INFIX:
                return f"({self.vector(x.left)} {INFIX[x.op]} {self.vector(x.right)})"
            case e.Unary(op="neg"):
                return f"(-{self.vector(x.value)})"
            case e.Math():
                return self.math(x.name, self.vector(x.value))
            case e.Cast():
                return self.cast(x.value.dtype, x.to, self.vector(x.value))
            case e.Select():
                then, otherwise = self.vector(x.then), self.vector(x.otherwise)
                return f"_mm512_mask_mov_ps({otherwise}, {self.condition(x.condition)}, {then})"
        raise NoVector

    def math(self, function: str, text: str) -> str:
        match function:
            case "exp" | "exp2" | "sigmoid" | "tanh":
                return f"{function}_lanes({text})"
            case "sqrt" | "abs":
                return f"_mm512_{function}_ps({text})"
            case "rsqrt":
                return f"(_mm512_set1_ps(1) / _mm512_sqrt_ps({text}))"
        raise NoVector

    def cast(self, source: dtypes.DType, to: dtypes.DType, text: str) -> str:
        if source.is_float and to == dtypes.f32:
            return text
        if source.is_float and to in NARROW:
            return f"lanes_from_{to}(lanes_to_{to}({text}))"
        raise NoVector

    def reads_stored(self, x: e.Expr) -> bool:
        return any(isinstance(node, e.Load) and node.buffer.name in self.stored for node in walk(x))

    def condition(self, x: e.Expr) -> str:
        if not self.depends(x):
            if self.reads_stored(x):
                raise NoVector
            return f"(({self.c(x)}) ? 0xffff : 0)"
        match x:
            case e.Binary(op="and" | "or") if x.dtype == dtypes.boolean:
                return f"({self.condition(x.left)} {'&' if x.op == 'and' else '|'} {self.condition(x.right)})"
            case e.Binary() if x.op in COMPARED and x.left.dtype.is_float and x.right.dtype.is_float:
                left, right = self.vector(x.left), self.vector(x.right)
                return f"_mm512_cmp_ps_mask({left}, {right}, _CMP_{COMPARED[x.op]})"
        raise NoVector
