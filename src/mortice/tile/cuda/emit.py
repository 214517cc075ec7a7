"""CUDA C++ of a function of the thread level, one kernel a launch; each statement becomes its own text."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mortice.tile import dtypes
from mortice.tile.c.writer import Writer
from mortice.tile.diagnostics import UnsupportedError
from mortice.tile.dtypes import DType, boolean
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.thread import OPS
from mortice.tile.ir.walk import walk

PRELUDE = Path(__file__).with_name("prelude.h").read_text()
TYPES = {
    dtypes.f64: "double", dtypes.f32: "float", dtypes.f16: "f16", dtypes.bf16: "bf16", dtypes.e4m3: "e4m3",
    dtypes.e5m2: "e5m2", dtypes.i64: "i64", dtypes.i32: "i32", dtypes.i16: "i16", dtypes.i8: "i8", dtypes.u32: "u32",
    dtypes.u16: "u16", dtypes.u8: "u8", dtypes.boolean: "u8", dtypes.index: "i32",
}  # fmt: skip
INFIX = {
    "add": "+", "sub": "-", "mul": "*", "xor": "^", "shl": "<<", "shr": ">>", "lt": "<", "le": "<=", "gt": ">",
    "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip
MATH = {
    "exp": "__expf({})", "exp2": "exp2_fast({})", "log": "__logf({})", "log2": "__log2f({})", "sqrt": "sqrtf({})",
    "rsqrt": "rsqrtf({})", "tanh": "tanhf({})", "erf": "erff({})", "sigmoid": "sigmoid({})", "sin": "sinf({})",
    "cos": "cosf({})", "abs": "fabsf({})", "floor": "floorf({})", "ceil": "ceilf({})",
}  # fmt: skip
FULL = "0xffffffffu"
CALLS = {
    "thread": "threadNumber", "lane": "((i32)threadIdx.x & 31)", "warp": "warpIndex", "warpgroup": "(warpIndex / 4)",
    "shuffle_xor": f"__shfl_xor_sync({FULL}, {{0}}, {{1}})", "shuffle_up": f"__shfl_up_sync({FULL}, {{0}}, {{1}})",
    "shuffle": f"__shfl_sync({FULL}, {{0}}, {{1}})", "fma": "__fmaf_rn({0}, {1}, {2})", "num_blocks": "(i32)gridDim.x",
}  # fmt: skip
SWIZZLE_CODES = {0: 0, 128: 1, 64: 2, 32: 3}
WGMMA_TYPES = {"bf16": "bf16", "f16": "f16", "e4m3": "e4m3", "e5m2": "e5m2"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """Of one launch. arguments: names of tensor maps, tensors and scalars in the order of its parameters; extents:
    blocks along each dimension; shared: bytes of dynamic shared memory; dependent: it waits itself for the kernel before;
    cluster: so many blocks side by side form one."""

    name: str
    maps: tuple[str, ...]
    tensors: tuple[str, ...]
    scalars: tuple[e.Var, ...]
    extents: tuple[e.Expr, ...]
    threads: int
    shared: int
    dependent: bool = False
    cluster: int = 1


def emit(function: s.Function) -> tuple[str, tuple[Kernel, ...]]:
    """The text, and what the host must know of each kernel in it."""
    emitter = Emitter(function)
    kernels = [
        emitter.kernel(i, x) for i, x in enumerate(x for x in function.body if isinstance(x, s.Launch))
    ]
    parts = [PRELUDE, *emitter.helpers.values(), *(text for text, _ in kernels)]
    return "\n".join(parts), tuple(kernel for _, kernel in kernels)


class Emitter:
    def __init__(self, function: s.Function) -> None:
        self.function = function
        self.helpers: dict[str, str] = {}
        self.writer = Writer()
        self.allocs: dict[str, s.Alloc] = {}
        self.maps: dict[str, None] = {}
        self.lets = [x for x in function.body if isinstance(x, s.Let)]

    def kernel(self, number: int, launch: s.Launch) -> tuple[str, Kernel]:
        self.writer = w = Writer()
        self.maps = {
            node.buffer.name: None
            for node in walk(launch)
            if isinstance(node, e.Region) and node.buffer.scope == "map"
        }
        threads = launch.threads or 128
        body = (*self.lets, *launch.body)
        scalars = self._scalars(launch, body)
        tensors = list(
            dict.fromkeys(
                node.buffer.name
                for node in walk(body)
                if isinstance(node, e.Load | s.Store | s.Atomic) and node.buffer.scope == "global"
            )
        )
        name = f"{self.function.name}_{number}"
        types = {p.buffer.name: TYPES[p.buffer.dtype] for p in self.function.tensors}
        params = [f"const __grid_constant__ CUtensorMap {ident(m)}" for m in self.maps]
        params += [f"{types[t]}* __restrict__ {ident(t)}" for t in tensors]
        params += [f"{value_type(v.dtype)} {ident(v.name)}" for v in scalars]
        w.line(
            f'extern "C" __global__ void {_shape(launch, threads)} {name}({", ".join(params)}) {{',
            open=True,
        )
        w.line("extern __shared__ __align__(1024) u8 sharedMemory[];")
        w.line("const u32 sharedBase = address(sharedMemory);")
        w.line(
            "i32 warpIndex = __shfl_sync(0xffffffffu, (i32)threadIdx.x / 32, 0), threadNumber = (i32)threadIdx.x;"
        )
        w.line("i32 blockNumber = (i32)blockIdx.x;")
        extents = launch.extents
        left = "blockNumber"
        for i, (var, extent) in enumerate(zip(launch.vars, extents, strict=True)):
            if i == len(extents) - 1:
                w.line(f"const i32 {ident(var.name)} = {left};")
            else:
                w.line(f"const i32 {ident(var.name)} = {left} % {self(extent)};")
                left = f"({left} / {self(extent)})"
        for let in self.lets:
            self.statement(let)
        self.block(launch.body)
        w.close()
        shared = max((_end(x) for x in walk(launch.body) if isinstance(x, s.Alloc)), default=0)
        dependent = any(isinstance(x, s.Op) and x.name == "wait_dependencies" for x in walk(launch.body))
        return w.text(), Kernel(
            name,
            tuple(self.maps),
            tuple(tensors),
            tuple(scalars),
            extents,
            threads,
            shared,
            dependent,
            launch.cluster,
        )

    def _scalars(self, launch: s.Launch, body: s.Block) -> list[e.Var]:
        """Dimensions, strides and scalar arguments that the kernel mentions."""
        known = {p.var.name: p.var for p in self.function.params if isinstance(p, s.Scalar)}
        strides: dict[str, list[e.Expr]] = {}
        for param in self.function.tensors:
            for x in (*param.buffer.shape, *(param.buffer.strides or ())):
                known |= {v.name: v for v in walk(x) if isinstance(v, e.Var)}
            strides[param.buffer.name] = [*param.buffer.shape, *(param.buffer.strides or ())]
        used: dict[str, e.Var] = {}
        everywhere = [*walk(body), *(node for extent in launch.extents for node in walk(extent))]
        for node in everywhere:
            found = [node] if isinstance(node, e.Var) else []
            if isinstance(node, e.Load | s.Store | s.Atomic) and node.buffer.scope == "global":
                found = [v for x in strides[node.buffer.name] for v in walk(x) if isinstance(v, e.Var)]
            for var in found:
                if var.name in known:
                    used[var.name] = known[var.name]
        return list(used.values())

    # Statements

    def block(self, block: Iterable[s.Stmt]) -> None:
        for statement in block:
            self.writer.mark(statement.span)
            self.statement(statement)

    def statement(self, x: s.Stmt) -> None:  # noqa: C901 - a table of all statements
        w = self.writer
        match x:
            case s.Alloc():
                self.allocs[x.buffer.name] = x
                if x.buffer.scope == "local":
                    w.line(
                        f"{value_type(x.buffer.dtype)} {ident(x.buffer.name)}[{math.prod(x.buffer.extents)}];"
                    )
            case s.Let():
                prefix = "" if x.mutable else "const "
                w.line(f"{prefix}{value_type(x.var.dtype)} {ident(x.var.name)} = {self(x.value)};")
            case s.Assign():
                w.line(f"{ident(x.var.name)} = {self(x.value)};")
            case s.Store():
                self._store(x)
            case s.Atomic():
                kind = {"add": "atomicAdd", "max": "atomicMax", "min": "atomicMin"}[x.op]
                test = bounds(self, x.buffer, x.indices, None)
                w.line(f"if ({test}) {kind}(&{self.element(x.buffer, x.indices)}, {self(x.value)});")
            case s.If():
                w.line(f"if ({self(x.condition)}) {{", open=True)
                self.block(x.then)
                w.close()
                if x.otherwise:
                    w.line("else {", open=True)
                    self.block(x.otherwise)
                    w.close()
            case s.While():
                w.line(f"while ({self(x.condition)}) {{", open=True)
                self.block(x.body)
                w.close()
            case s.For():
                if x.kind == "unroll":
                    w.line("#pragma unroll")
                elif x.kind == "serial":
                    w.line("#pragma unroll 1")
                var = ident(x.var.name)
                sign = "<" if never_negative(x.step) else ">"
                w.line(
                    f"for (i32 {var} = {self(x.start)}; {var} {sign} {self(x.stop)}; {var} += {self(x.step)}) {{",
                    open=True,
                )
                self.block(x.body)
                w.close()
            case s.Roles():
                self._roles(x)
            case s.Op():
                w.line(self._op(x))
            case s.Check():
                pass
            case _:
                raise UnsupportedError(
                    x.span, type(x).__name__.lower(), "there is no CUDA for it", "use the interpreter"
                )

    def _store(self, x: s.Store) -> None:
        if x.buffer.scope == "local":
            self.writer.line(f"{ident(x.buffer.name)}[{self(x.indices[0])}] = {self(x.value)};")
            return
        text = f"{self.element(x.buffer, x.indices)} = rounded<{TYPES[x.buffer.dtype]}>({self(x.value)});"
        test = bounds(self, x.buffer, x.indices, x.guards)
        self.writer.line(f"if ({test}) {text}" if test else text)

    def _roles(self, roles: s.Roles) -> None:
        """One chain of if and else over whole warps, so that each branch may have a register count of its own."""
        first, end = 0, 0
        for i, role in enumerate(roles.roles):
            end += role.warps
            last = i == len(roles.roles) - 1
            head = (
                "else {"
                if last and i
                else f"if (warpIndex < {end}) {{"
                if not i
                else f"else if (warpIndex < {end}) {{"
            )
            self.writer.line(head, open=True)
            self.writer.line(f"// role {role.name}")
            if first:
                self.writer.line(f"warpIndex -= {first}; threadNumber -= {32 * first};")
            if role.registers:
                self.writer.line(f"{'grow' if i else 'shrink'}_registers<{role.registers}>();")
            self.block(role.body)
            self.writer.close()
            first = end

    # Instructions

    def _op(self, x: s.Op) -> str:  # noqa: C901 - a table of all instructions
        at = dict(x.attributes)
        texts = [self.operand(operand, kind) for operand, kind in zip(x.operands, kinds(x), strict=True)]
        match x.name:
            case "barrier_init":
                region = x.operands[0]
                assert isinstance(region, e.Region)
                return f"barrier_init({texts[0]}, {self.allocs[region.buffer.name].count});"
            case "tma_load":
                return self._tma_load(texts, int(at["multicast"]), str(at["hint"]))
            case "tma_store" | "tma_reduce_add":
                return self._tma_store(x.name, texts)
            case "bulk_wait":
                return f"bulk_wait{'_read' if at['read_only'] else ''}<{at['pending']}>();"
            case "wgmma_wait" | "cp_async_wait":
                return f"{x.name}<{at['pending']}>();"
            case "cp_async":
                return f"cp_async<{at['bytes']}>({', '.join(texts)});"
            case "wgmma" | "wgmma_registers":
                return self._wgmma(x, texts, at)
            case "ldmatrix" | "stmatrix":
                return (
                    f"{x.name}_{at['count']}{'_transposed' if at['transpose'] else ''}({', '.join(texts)});"
                )
            case "load_shared" | "store_shared" | "load_global" | "store_global" | "reduce_add_global":
                return f"{x.name}_{at['bytes']}({', '.join(texts)});"
            case "set_registers":
                return f"{'grow' if at['grow'] else 'shrink'}_registers<{at['count']}>();"
            case "ptx":
                inputs = ", ".join(f'"r"({text})' for text in texts)
                return f'asm volatile("{at["text"]}" :: {inputs} : "memory");'
            case "mma":
                return self._mma(texts, at)
        return f"{x.name}({', '.join(texts)});"

    def _tma_load(self, texts: list[str], multicast: int, hint: str) -> str:
        rank = len(texts) - 3
        name = f"tma_load_{rank}d" + ("_multicast" if multicast else "") + (f"_{hint}" if hint else "")
        if name not in self.helpers:
            coordinates = ", ".join(f"%{i + 3}" for i in range(rank))
            params = "".join(f", i32 c{i}" for i in range(rank))
            inputs = "".join(f', "r"(c{i})' for i in range(rank))
            extra, options, position = "", "", rank + 3
            if multicast:
                extra, options, position = f", %{position}", ".multicast::cluster", position + 1
                params, inputs = f"{params}, u16 mask", f'{inputs}, "h"(mask)'
            if hint:
                extra, options = f"{extra}, %{position}", f"{options}.L2::cache_hint"
                inputs = f'{inputs}, "l"(policy_{hint}())'
            self.helpers[name] = (
                f"INLINE void {name}(u32 to, const CUtensorMap* m, u32 b{params}) {{\n"
                f'  asm volatile("cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes'
                f'{options} [%0], [%1, {{{coordinates}}}], [%2]{extra};" :: "r"(to), "l"(m), "r"(b){inputs} : "memory");\n}}'
            )
        if multicast:
            texts = [*texts, f"(u16){multicast}"]
        return f"{name}({', '.join(texts)});"

    def _tma_store(self, kind: str, texts: list[str]) -> str:
        rank = len(texts) - 2
        name = f"{kind}_{rank}d"
        if name not in self.helpers:
            coordinates = ", ".join(f"%{i + 2}" for i in range(rank))
            params = "".join(f", i32 c{i}" for i in range(rank))
            inputs = "".join(f', "r"(c{i})' for i in range(rank))
            form = (
                f"cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"
                if kind == "tma_store"
                else f"cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.add.tile.bulk_group"
            )
            self.helpers[name] = (
                f"INLINE void {name}(const CUtensorMap* m, u32 from{params}) {{\n"
                f'  asm volatile("{form} [%0, {{{coordinates}}}], [%1];" :: "l"(m), "r"(from){inputs} : "memory");\n}}'
            )
        return f"{name}({', '.join(texts)});"

    def _wgmma(self, x: s.Op, texts: list[str], at: dict[str, int | str | bool]) -> str:
        n, held = int(at["n"]), x.name == "wgmma_registers"
        narrow = at["a_type"] in ("e4m3", "e5m2")
        a_flag = int(not held and at["a_major"] == "mn")
        name = f"{x.name}_{n}_{at['a_type']}_{at['b_type']}_{a_flag}{int(at['b_major'] == 'mn')}"
        count = n // 2
        if name not in self.helpers:
            d = ", ".join(f"%{i}" for i in range(count))
            outs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
            a = "{" + ", ".join(f"%{count + i}" for i in range(4)) + "}" if held else f"%{count}"
            after = count + (4 if held else 1)
            flags = (
                "1, 1"
                if narrow
                else f"1, 1, {int(at['b_major'] == 'mn')}"
                if held
                else (f"1, 1, {a_flag}, {int(at['b_major'] == 'mn')}")
            )
            ins = ", ".join(f'"r"(a[{i}])' for i in range(4)) if held else '"l"(a)'
            shape = f"m64n{n}k{32 if narrow else 16}.f32.{at['a_type']}.{at['b_type']}"
            self.helpers[name] = (
                f"INLINE void {name}(float* d, {'const u32* a' if held else 'u64 a'}, u64 b, i32 keep) {{\n"
                f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{after + 1}, 0;\\n'
                f'wgmma.mma_async.sync.aligned.{shape} {{{d}}}, {a}, %{after}, p, {flags}; }}"\n'
                f'    : {outs} : {ins}, "l"(b), "r"(keep));\n}}'
            )
        _, a_operand, b_operand, _ = x.operands
        a_text = texts[1] if held else self.descriptor(a_operand, at, "a")
        return f"{name}({texts[0]}, {a_text}, {self.descriptor(b_operand, at, 'b')}, {texts[3]});"

    def descriptor(self, region: e.Expr | e.Region, at: dict[str, int | str | bool], side: str) -> str:
        """A constant distance is added to the encoded descriptor, so that what is before it is computed once."""
        assert isinstance(region, e.Region)
        fields = (
            (int(at[f"{side}_leading"]) >> 4) << 16
            | (int(at[f"{side}_stride"]) >> 4) << 32
            | SWIZZLE_CODES[int(at[f"{side}_swizzle"])] << 62
        )
        offset, fixed = region.offsets[0], 0
        if isinstance(offset, e.Const):
            offset, fixed = e.const(0), int(offset.value)
        else:
            match offset:
                case e.Binary(op="add", left=varying, right=e.Const(value=distance)):
                    offset, fixed = varying, int(distance)
        base = self.allocs[region.buffer.name].at or 0
        return f"(descriptor(sharedBase + {base} + (u32)({self(offset)}), {fields}ull) + {fixed >> 4})"

    def _mma(self, texts: list[str], at: dict[str, int | str | bool]) -> str:
        k, whole = int(at["k"]), at["a_type"] in ("i8", "u8")
        a, b = (str(at[f"{side}_type"]).replace("i8", "s8") for side in "ab")
        name, sums, kind, place = (
            f"mma_{k}_{a}_{b}",
            *(("s32", "i32", "r") if whole else ("f32", "float", "f")),
        )
        outs = ", ".join(f'"+{place}"(d[{i}])' for i in range(4))
        self.helpers.setdefault(
            name,
            f"INLINE void {name}({kind}* d, const u32* a, const u32* b) {{\n"
            f'  asm("mma.sync.aligned.m16n8k{k}.row.col.{sums}.{a}.{b}.{sums} '
            f'{{%0,%1,%2,%3}}, {{%4,%5,%6,%7}}, {{%8,%9}}, {{%0,%1,%2,%3}};" : {outs} '
            ': "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));\n}',
        )
        return f"{name}({', '.join(texts)});"

    def operand(self, x: e.Expr | e.Region, kind: str) -> str:
        if isinstance(x, e.Region):
            name = ident(x.buffer.name)
            match x.buffer.scope:
                case "local":
                    return f"({name} + {self(x.offsets[0])})"
                case "map":
                    return f"&{name}"
                case "barrier":
                    return f"(sharedBase + {self.allocs[x.buffer.name].at} + 8 * ({self(x.offsets[0])}))"
            return f"(sharedBase + {self.allocs[x.buffer.name].at} + (u32)({self(x.offsets[0])}))"
        if kind == "global":
            assert isinstance(x, e.Load)
            return f"&{self.element(x.buffer, x.indices)}"
        return self(x)

    # Expressions

    def __call__(self, x: e.Expr) -> str:  # noqa: C901 - a table of all expressions
        match x:
            case e.Const():
                return constant(x)
            case e.Var():
                return ident(x.name)
            case e.Binary():
                return self._binary(x)
            case e.Unary():
                return f"({ {'neg': '-', 'not': '!', 'invert': '~'}[x.op] }{self(x.value)})"
            case e.Math():
                if not x.dtype.is_float:
                    return f"abs({self(x.value)})"
                return MATH[x.name].format(self(x.value))
            case e.Cast():
                if x.to.is_float and x.to.bits < 32:
                    return f"load(rounded<{TYPES[x.to]}>((float)({self(x.value)})))"
                if x.to.bits < 32:
                    return f"({value_type(x.to)})({TYPES[x.to]})({self(x.value)})"
                return f"({value_type(x.to)})({self(x.value)})"
            case e.Bitcast():
                return bitcast(self(x.value), x.value.dtype, x.to)
            case e.Select():
                return f"({self(x.condition)} ? {self(x.then)} : {self(x.otherwise)})"
            case e.Load():
                return self._load(x)
            case e.Call():
                return self._call(x)
        raise TypeError(type(x).__name__)

    def _call(self, x: e.Call) -> str:
        args = [self(arg) for arg in x.args]
        if x.name in CALLS:
            return CALLS[x.name].format(*args)
        return f"{x.name}({', '.join(args)})"

    def _load(self, x: e.Load) -> str:
        if x.buffer.scope == "local":
            return f"{ident(x.buffer.name)}[{self(x.indices[0])}]"
        text = f"load({self.element(x.buffer, x.indices)})"
        test = bounds(self, x.buffer, x.indices, x.guards)
        return f"({test} ? {text} : ({value_type(x.buffer.dtype)})0)" if test else text

    def element(self, buffer: e.Buffer, indices: tuple[e.Expr, ...]) -> str:
        offset = " + ".join(
            f"(i64)({self(i)})" + (f" * {stride}" if stride != "1" else "")
            for i, stride in zip(indices, strides(self, buffer), strict=True)
        )
        return f"{ident(buffer.name)}[{offset or 0}]"

    def _binary(self, x: e.Binary) -> str:
        left, right = self(x.left), self(x.right)
        if x.op in ("and", "or"):
            sign = {"and": "&", "or": "|"}[x.op]
            return f"({left} {sign * 2 if x.dtype == boolean else sign} {right})"
        if x.op in ("min", "max"):
            kind = value_type(x.dtype)
            return f"{'least' if x.op == 'min' else 'most'}(({kind})({left}), ({kind})({right}))"
        if x.op in ("floordiv", "mod"):
            if isinstance(x.right, e.Const) and x.right.value > 0 and never_negative(x.left):
                return f"({left} {'/' if x.op == 'floordiv' else '%'} {right})"
            kind = value_type(x.dtype)
            return f"{'floordiv' if x.op == 'floordiv' else 'floormod'}(({kind}){left}, ({kind}){right})"
        if x.op == "div":
            return f"({left} / {right})" if x.dtype.bits == 64 else f"__fdividef({left}, {right})"
        return f"({left} {INFIX[x.op]} {right})"


def kinds(x: s.Op) -> list[str]:
    entry = OPS[x.name].operands
    fixed = [kind.removesuffix("...") for kind in entry]
    return fixed + [fixed[-1]] * (len(x.operands) - len(fixed)) if fixed else []


def never_negative(x: e.Expr) -> bool:
    match x:
        case e.Const():
            return bool(x.value >= 0)
        case e.Call(name="thread" | "lane" | "warp" | "warpgroup" | "num_blocks"):
            return True
        case e.Binary(op="add" | "mul" | "shr"):
            return never_negative(x.left) and never_negative(x.right)
        case e.Binary(op="and"):
            return never_negative(x.right)
    return False


def strides(emitter: Emitter, buffer: e.Buffer) -> list[str]:
    """Of each dimension in elements."""
    if buffer.strides is not None:
        return [emitter(x) if isinstance(x, e.Const) else f"(i64){emitter(x)}" for x in buffer.strides]
    out, tail = ["1"], ""
    for extent in reversed(buffer.shape[1:]):
        tail = f"(i64){emitter(extent)}" + (f" * {tail}" if tail else "")
        out.append(tail)
    return out[::-1] if buffer.shape else []


def bounds(
    emitter: Emitter, buffer: e.Buffer, indices: tuple[e.Expr, ...], guards: tuple[bool, ...] | None
) -> str:
    """A test of the dimensions that need one (all of them where that is not known), or nothing."""
    tests = []
    for i, (index, extent) in enumerate(zip(indices, buffer.shape, strict=True)):
        if guards is None or guards[i]:
            tests.append(f"(u32)({emitter(index)}) < (u32)({emitter(extent)})")
    return " && ".join(tests)


def value_type(dtype: DType) -> str:
    if dtype == boolean:
        return "bool"
    return TYPES[dtypes.widened(dtype)]


def bitcast(text: str, source: DType, to: DType) -> str:
    if source.is_float and not to.is_float:
        return f"({TYPES[to]})__float_as_uint({text})"
    if to.is_float:
        return f"__uint_as_float((u32){text})"
    return f"({TYPES[to]}){text}"


def ident(name: str) -> str:
    """Kernel names end in an underscore: they meet no word of C++ or of the prelude."""
    return f"{name}_"


def constant(x: e.Const) -> str:
    if x.dtype == boolean:
        return "true" if x.value else "false"
    if not x.dtype.is_float:
        return f"{x.value}" if abs(x.value) < 2**31 else f"{x.value}ll"
    if math.isnan(x.value):
        return "NANF"
    if math.isinf(x.value):
        return "INF" if x.value > 0 else "(-INF)"
    return float(x.value).hex() + ("" if x.dtype == dtypes.f64 else "f")


def _shape(launch: s.Launch, threads: int) -> str:
    """What a compiled kernel fixes of its launch."""
    cluster = f"__cluster_dims__({launch.cluster}, 1, 1) " if launch.cluster > 1 else ""
    return f"{cluster}__launch_bounds__({threads}, {_together(launch)})"


def _together(launch: s.Launch) -> int:
    """Blocks that a multiprocessor shall hold at once, by the registers its roles say they need."""
    roles = next((x.roles for x in launch.body if isinstance(x, s.Roles)), ())
    if not roles or not all(role.registers for role in roles):
        return 1
    return max(1, 65536 // sum(32 * role.warps * role.registers for role in roles))


def _end(alloc: s.Alloc) -> int:
    if alloc.buffer.scope not in ("shared", "barrier") or alloc.at is None:
        return 0
    each = 8 if alloc.buffer.scope == "barrier" else alloc.buffer.dtype.bytes
    return alloc.at + each * math.prod(alloc.buffer.extents)
