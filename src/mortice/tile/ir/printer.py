"""IR as text that reads like Python and that `parser` reads back.

A region is `A[offset::extent, index]`; a guarded access is `A[i, j] @ (1, 0)`; with spans each statement ends in
`#@ file:line:column`.
"""

from collections.abc import Iterator

from mortice.tile.diagnostics import NOWHERE
from mortice.tile.dtypes import boolean, f32, index
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "xor": "^", "shl": "<<", "shr": ">>",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip
PREFIX = {"neg": "-", "not": "not ", "invert": "~"}


def text(function: s.Function, spans: bool = False) -> str:
    """The whole function."""
    params = ", ".join(_param(param) for param in function.params)
    lines = [_spanned(f"def {function.name}({params}):", function, spans)]
    lines += [f"    {line}" for line in _block(function.body, spans)]
    return "\n".join(lines) + "\n"


def expression(x: e.Expr) -> str:  # noqa: C901 - a table of all expressions
    match x:
        case e.Const():
            return _constant(x)
        case e.Var():
            return x.name
        case e.Binary(op=op) if op in INFIX:
            return f"({_operand(x.left, x.right)} {INFIX[op]} {_operand(x.right, x.left)})"
        case e.Binary(op="and" | "or" as op):
            sign = op if x.dtype == boolean else {"and": "&", "or": "|"}[op]
            return f"({_operand(x.left, x.right)} {sign} {_operand(x.right, x.left)})"
        case e.Binary():
            return f"{x.op}({_operand(x.left, x.right)}, {_operand(x.right, x.left)})"
        case e.Unary():
            return f"({PREFIX[x.op]}{expression(x.value)})"
        case e.Math():
            return f"{x.name}({expression(x.value)})"
        case e.Cast():
            return f"cast({x.to}, {expression(x.value)})"
        case e.Bitcast():
            return f"bitcast({x.to}, {expression(x.value)})"
        case e.Select():
            return f"({expression(x.then)} if {expression(x.condition)} else {expression(x.otherwise)})"
        case e.Load():
            where = f"{x.buffer.name}[{_list(x.indices)}]"
            return where if x.guards is None else f"({where} @ {_guards(x.guards)})"
        case e.Call():
            return f"{x.name}({_list(x.args)})"
    raise TypeError(f"{type(x).__name__} has no text")


def _operand(x: e.Expr, other: e.Expr) -> str:
    """A whole constant takes the type of what it meets, so that its own need not be said."""
    if (
        isinstance(x, e.Const)
        and x.dtype.is_integer
        and x.dtype == other.dtype
        and not isinstance(other, e.Const)
    ):
        return str(x.value)
    return expression(x)


def region(r: e.Region) -> str:
    parts = [
        f"{expression(offset)}::{expression(extent)}" if i in r.kept else expression(offset)
        for i, (offset, extent) in enumerate(zip(r.offsets, r.extents, strict=True))
    ]
    return f"{r.buffer.name}[{', '.join(parts)}]"


def _constant(x: e.Const) -> str:
    if x.dtype == boolean:
        return str(bool(x.value))
    if x.dtype == index:
        return str(x.value)
    number = repr(x.value) if x.value == x.value and abs(x.value) != float("inf") else f'"{x.value}"'
    return number if x.dtype == f32 and not number.startswith('"') else f"const({x.dtype}, {number})"


def _list(items: tuple[e.Expr, ...]) -> str:
    return ", ".join(map(expression, items))


def _guards(guards: tuple[bool, ...]) -> str:
    return "(" + "".join(f"{int(guard)}," for guard in guards) + ")"


def _param(param: s.Param) -> str:
    if isinstance(param, s.TensorMap):
        options = f"dims={param.dims}, box={param.box}, swizzle={param.swizzle}"
        return f"{param.buffer.name}: tensor_map({param.tensor.name}, {options})"
    if isinstance(param, s.Scalar):
        return f"{param.var.name}: {param.var.dtype}"
    buffer = param.buffer
    shape = f"{buffer.dtype}[{_list(buffer.shape)}]"
    if buffer.strides is not None:
        shape = f"strided({shape}, {_list(buffer.strides)})"
    if buffer.align:
        shape = f"aligned({shape}, {buffer.align})"
    role = "result" if param.result else "written" if param.written else ""
    return f"{buffer.name}: {role}({shape})" if role else f"{buffer.name}: {shape}"


def _spanned(line: str, node: s.Stmt | s.Function, spans: bool) -> str:
    return f"{line}  #@ {node.span}" if spans and node.span != NOWHERE else line


def _block(block: s.Block, spans: bool) -> Iterator[str]:
    if not block:
        yield "pass"
    for statement in block:
        head, bodies = _statement(statement)
        yield _spanned(head, statement, spans)
        for title, body in bodies:
            if title:
                yield title
            yield from (f"    {line}" for line in _block(body, spans))


def _statement(x: s.Stmt) -> tuple[str, list[tuple[str, s.Block]]]:  # noqa: C901 - a table of all statements
    match x:
        case s.Launch():
            names = ", ".join(var.name for var in x.vars)
            options = f"threads={x.threads}, panel={x.panel}, cluster={x.cluster}"
            return f"for {names}, in launch({_list(x.extents)}, {options}):", [("", x.body)]
        case s.For():
            ends = f"{expression(x.start)}, {expression(x.stop)}, {expression(x.step)}"
            return f"for {x.var.name} in {x.kind}({ends}, stages={x.stages}):", [("", x.body)]
        case s.Parallel():
            names = ", ".join(var.name for var in x.vars)
            return f"for {names}, in parallel({_list(x.extents)}):", [("", x.body)]
        case s.If():
            bodies = [("", x.then)] + ([("else:", x.otherwise)] if x.otherwise else [])
            return f"if {expression(x.condition)}:", bodies
        case s.While():
            return f"while {expression(x.condition)}:", [("", x.body)]
        case s.Let():
            kind = "var" if x.mutable else "let"
            return f"{x.var.name}: {kind}({x.var.dtype}) = {expression(x.value)}", []
        case s.Assign():
            return f"{x.var.name} = {expression(x.value)}", []
        case s.Alloc():
            b = x.buffer
            placed = ("" if x.at is None else f", at={x.at}") + (f", count={x.count}" if x.count else "")
            return f"{b.name} = {b.scope}({b.dtype}, {_list(b.shape)}{placed})", []
        case s.Roles():
            return "with roles():", [("", x.roles)]
        case s.Role():
            return f"with role({x.name!r}, warps={x.warps}, registers={x.registers}):", [("", x.body)]
        case s.Op():
            operands = [region(v) if isinstance(v, e.Region) else expression(v) for v in x.operands]
            operands += [f"{key}={value!r}" for key, value in x.attributes]
            return f"op.{x.name}({', '.join(operands)})", []
        case s.Store():
            guards = "" if x.guards is None else f": {_guards(x.guards)}"
            return f"{x.buffer.name}[{_list(x.indices)}]{guards} = {expression(x.value)}", []
        case s.Copy():
            ends = f"{region(x.source)}, {region(x.target)}"
            return f"copy({ends}, pad={expression(x.pad)}, prefer={x.prefer!r})", []
        case s.Unpack():
            return f"unpack({region(x.source)}, {region(x.target)})", []
        case s.Fill():
            return f"fill({region(x.target)}, {expression(x.value)})", []
        case s.Gemm():
            flags = f"transpose_a={x.transpose_a}, transpose_b={x.transpose_b}, clear={x.clear}"
            return f"gemm({region(x.a)}, {region(x.b)}, {region(x.c)}, {flags})", []
        case s.Reduce():
            ends = f"{region(x.source)}, {region(x.target)}"
            return f"reduce({x.op!r}, {ends}, axis={x.axis}, clear={x.clear})", []
        case s.Scan():
            ends = f"{region(x.source)}, {region(x.target)}"
            return f"scan({x.op!r}, {ends}, axis={x.axis}, reverse={x.reverse})", []
        case s.Atomic():
            return f"atomic({x.op!r}, {x.buffer.name}[{_list(x.indices)}], {expression(x.value)})", []
        case s.Print():
            values = ", ".join(v.name if isinstance(v, e.Buffer) else expression(v) for v in x.values)
            return f"print({x.label!r}, {values})", []
        case s.Breakpoint():
            return "breakpoint()", []
        case s.Check():
            return f"assert {expression(x.condition)}, {x.message!r}", []
    raise TypeError(f"{type(x).__name__} has no text")
