"""Reads the printer's text back. Python's own grammar does the tokenising; each form is the printer's, turned round."""

import ast
from typing import Any

from mortice.tile.diagnostics import NOWHERE, Span
from mortice.tile.dtypes import BY_NAME, boolean, f32, index
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.printer import INFIX
from mortice.tile.ir.thread import FUNCTIONS

INFIX_NODES = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.BitXor: "xor", ast.LShift: "shl", ast.RShift: "shr", ast.BitAnd: "and", ast.BitOr: "or",
    ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne",
}  # fmt: skip
assert set(INFIX) <= set(INFIX_NODES.values())
PREFIX_NODES = {ast.USub: "neg", ast.Not: "not", ast.Invert: "invert"}

SCOPES = ("shared", "fragment", "local", "barrier")


def parse(source: str) -> s.Function:
    """Raises ValueError that names the line of text which is no IR."""
    tree = ast.parse(source).body
    if len(tree) != 1 or not isinstance(tree[0], ast.FunctionDef):
        raise ValueError("the text of one function is expected")
    return _Parser(source.splitlines()).function(tree[0])


class _Parser:
    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.vars: dict[str, e.Var] = {}
        self.buffers: dict[str, e.Buffer] = {}

    def function(self, node: ast.FunctionDef) -> s.Function:
        params: tuple[s.Param, ...] = tuple(self.param(arg) for arg in node.args.args)
        return s.Function(node.name, params, self.block(node.body), span=self.span(node))

    def span(self, node: ast.stmt) -> Span:
        _, mark, place = self.lines[node.lineno - 1].rpartition("  #@ ")
        if not mark:
            return NOWHERE
        file, line, column = place.rsplit(":", 2)
        return Span(file, int(line), int(column))

    def param(self, arg: ast.arg) -> s.Param:
        note: Any = arg.annotation
        if isinstance(note, ast.Call) and note.func.id == "tensor_map":  # type: ignore[attr-defined]
            options = {str(item.arg): ast.literal_eval(item.value) for item in note.keywords}
            tensor = self.buffers[note.args[0].id]  # type: ignore[attr-defined]
            self.buffers[arg.arg] = e.Buffer(arg.arg, tensor.dtype, (e.const(1),), "map")
            return s.TensorMap(self.buffers[arg.arg], tensor, **options)
        if isinstance(note, ast.Name):
            return s.Scalar(self.declare(arg.arg, note.id))
        role = ""
        match note:
            case ast.Call(func=ast.Name(id="written" | "result" as role), args=[note]):
                pass
        strides, align = None, 0
        match note:
            case ast.Call(func=ast.Name(id="aligned"), args=[note, ast.Constant(value=int(align))]):
                pass
        if isinstance(note, ast.Call):
            stride_nodes, note = note.args[1:], note.args[0]
            strides = tuple(self.dimension(item) for item in stride_nodes)
        shape = tuple(self.dimension(item) for item in _items(note.slice))
        buffer = e.Buffer(arg.arg, BY_NAME[note.value.id], shape, "global", strides, align)
        self.buffers[arg.arg] = buffer
        return s.Tensor(buffer, written=role != "", result=role == "result")

    def dimension(self, node: ast.expr) -> e.Expr:
        if isinstance(node, ast.Name) and node.id not in self.vars:
            return self.declare(node.id, "index")
        return self.expr(node)

    def declare(self, name: str, dtype: str) -> e.Var:
        self.vars[name] = e.Var(BY_NAME[dtype], name)
        return self.vars[name]

    def block(self, nodes: list[ast.stmt]) -> s.Block:
        return tuple(self.statement(node) for node in nodes if not isinstance(node, ast.Pass))

    def statement(self, node: ast.stmt) -> s.Stmt:  # noqa: C901 - a table of all statements
        span = self.span(node)
        match node:
            case ast.For():
                return self.loop(node, span)
            case ast.If():
                return s.If(self.expr(node.test), self.block(node.body), self.block(node.orelse), span=span)
            case ast.While():
                return s.While(self.expr(node.test), self.block(node.body), span=span)
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=ast.Call(func=ast.Name(id=kind), args=[dtype])
            ):
                value = self.expr(node.value)
                return s.Let(self.declare(name, dtype.id), value, mutable=kind == "var", span=span)  # type: ignore[attr-defined]
            case ast.AnnAssign(target=ast.Subscript() as target):
                buffer, indices = self.element(target)
                return s.Store(buffer, indices, self.expr(node.value), _flags(node.annotation), span=span)
            case ast.Assign(targets=[ast.Subscript() as target]):
                return s.Store(*self.element(target), self.expr(node.value), span=span)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id=scope)) as call) if (
                scope in SCOPES or scope.startswith("panels_")
            ) and name not in self.vars:
                dtype_node: Any = call.args[0]
                shape = tuple(map(self.expr, call.args[1:]))
                self.buffers[name] = e.Buffer(name, BY_NAME[dtype_node.id], shape, scope)
                placed = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
                return s.Alloc(self.buffers[name], **placed, span=span)
            case ast.With(items=[ast.withitem(context_expr=ast.Call(func=ast.Name(id="roles")))]):
                return s.Roles(self.block(node.body), span=span)  # type: ignore[arg-type]
            case ast.With(items=[ast.withitem(context_expr=ast.Call(func=ast.Name(id="role")) as call)]):
                given = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
                return s.Role(ast.literal_eval(call.args[0]), **given, body=self.block(node.body), span=span)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="op"), attr=name)) as call):
                operands = tuple(self.operand(arg) for arg in call.args)
                attributes = tuple((str(item.arg), ast.literal_eval(item.value)) for item in call.keywords)
                return s.Op(name, operands, attributes, span=span)
            case ast.Assign(targets=[ast.Name(id=name)]):
                return s.Assign(self.vars[name], self.expr(node.value), span=span)
            case ast.Assert():
                return s.Check(self.expr(node.test), ast.literal_eval(node.msg), span=span)  # type: ignore[arg-type]
            case ast.Expr(value=ast.Call() as call):
                return self.operator(call, span)
        raise ValueError(f"line {node.lineno}: no statement of the IR")

    def loop(self, node: ast.For, span: Span) -> s.Stmt:
        call: Any = node.iter
        kind = call.func.id
        ends = tuple(map(self.expr, call.args))
        names = [getattr(item, "id", "") for item in _items(node.target)]
        variables = tuple(self.declare(name, "index") for name in names)
        body = self.block(node.body)
        options = {item.arg: ast.literal_eval(item.value) for item in call.keywords}
        if kind == "launch":
            return s.Launch(variables, ends, body, **options, span=span)
        if kind == "parallel":
            return s.Parallel(variables, ends, body, span=span)
        start, stop, step = ends
        return s.For(variables[0], start, stop, step, body, kind, **options, span=span)

    def operator(self, call: ast.Call, span: Span) -> s.Stmt:
        name, args = call.func.id, call.args  # type: ignore[attr-defined]
        given = {item.arg: item.value for item in call.keywords}
        flags = {str(key): ast.literal_eval(value) for key, value in given.items() if key != "pad"}
        match name:
            case "copy":
                source, target = map(self.region, args)
                return s.Copy(source, target, self.expr(given["pad"]), **flags, span=span)
            case "unpack":
                return s.Unpack(*map(self.region, args), span=span)
            case "fill":
                return s.Fill(self.region(args[0]), self.expr(args[1]), span=span)
            case "gemm":
                a, b, c = map(self.region, args)
                return s.Gemm(a, b, c, **flags, span=span)
            case "reduce" | "scan":
                source, target = map(self.region, args[1:])
                node = s.Reduce if name == "reduce" else s.Scan
                return node(ast.literal_eval(args[0]), source, target, **flags, span=span)
            case "atomic":
                return s.Atomic(
                    ast.literal_eval(args[0]), *self.element(args[1]), self.expr(args[2]), span=span
                )
            case "print":
                values = tuple(
                    self.buffers[arg.id]
                    if isinstance(arg, ast.Name) and arg.id in self.buffers
                    else self.expr(arg)
                    for arg in args[1:]
                )
                return s.Print(ast.literal_eval(args[0]), values, span=span)
            case "breakpoint":
                return s.Breakpoint(span=span)
        raise ValueError(f"line {call.lineno}: no operator {name}")

    def operand(self, node: ast.expr) -> e.Expr | e.Region:
        """A subscript is a box or an address, except of registers by single index, which is a value."""
        if isinstance(node, ast.Subscript):
            box = self.region(node)
            value = not box.kept and box.buffer.scope in ("local", "global")
            return build.load(box.buffer, box.offsets) if value else box
        return self.expr(node)

    def region(self, node: ast.expr) -> e.Region:
        assert isinstance(node, ast.Subscript)
        buffer = self.buffers[node.value.id]  # type: ignore[attr-defined]
        offsets, extents, kept = [], [], []
        for i, item in enumerate(_items(node.slice)):
            if isinstance(item, ast.Slice):
                offsets.append(self.expr(item.lower))
                extents.append(self.expr(item.step))
                kept.append(i)
            else:
                offsets.append(self.expr(item))
                extents.append(e.const(1))
        return e.Region(buffer, tuple(offsets), tuple(extents), tuple(kept))

    def element(self, node: ast.expr) -> tuple[e.Buffer, tuple[e.Expr, ...]]:
        assert isinstance(node, ast.Subscript)
        return self.buffers[node.value.id], tuple(map(self.expr, _items(node.slice)))  # type: ignore[attr-defined]

    def expr(self, node: ast.expr | None) -> e.Expr:  # noqa: C901 - a table of all expressions
        match node:
            case ast.Constant(value=bool() as value):
                return e.Const(boolean, value)
            case ast.Constant(value=int() as value):
                return e.Const(index, value)
            case ast.Constant(value=float() as value):
                return e.Const(f32, value)
            case ast.Name(id=name):
                return self.vars[name]
            case ast.BinOp(op=ast.MatMult(), left=ast.Subscript() as access):
                return build.load(*self.element(access), guards=_flags(node.right))
            case ast.BinOp():
                return build.binary(INFIX_NODES[type(node.op)], self.expr(node.left), self.expr(node.right))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return build.binary(INFIX_NODES[type(op)], self.expr(left), self.expr(right))
            case ast.BoolOp(values=[left, right]):
                op_name = "and" if isinstance(node.op, ast.And) else "or"
                return build.binary(op_name, self.expr(left), self.expr(right))
            case ast.UnaryOp():
                return build.unary(PREFIX_NODES[type(node.op)], self.expr(node.operand))
            case ast.IfExp():
                return build.select(self.expr(node.test), self.expr(node.body), self.expr(node.orelse))
            case ast.Subscript():
                return build.load(*self.element(node))
            case ast.Call(func=ast.Name(id="const"), args=[ast.Name(id=dtype), value]):
                number = ast.literal_eval(value)
                return e.Const(BY_NAME[dtype], float(number) if isinstance(number, str) else number)
            case ast.Call(func=ast.Name(id="cast"), args=[ast.Name(id=dtype), value]):
                return build.cast(self.expr(value), BY_NAME[dtype])
            case ast.Call(func=ast.Name(id="bitcast"), args=[ast.Name(id=dtype), value]):
                return build.bitcast(self.expr(value), BY_NAME[dtype])
            case ast.Call(func=ast.Name(id="min" | "max" as name), args=[left, right]):
                return build.binary(name, self.expr(left), self.expr(right))
            case ast.Call(func=ast.Name(id=name), args=[value]) if name in e.MATH:
                return build.math_call(name, self.expr(value))
            case ast.Call(func=ast.Name(id=name), args=args) if name in FUNCTIONS:
                return build.call(name, tuple(map(self.expr, args)))
        raise ValueError(f"line {getattr(node, 'lineno', '?')}: no expression of the IR")


def _items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _flags(node: ast.expr) -> tuple[bool, ...]:
    return tuple(bool(flag) for flag in ast.literal_eval(node))
