"""The invariant "thread": a function that emitter and simulator can take.

Inside launches there are no tile operators, fragments or guards left undecided; every Op fits its entry in the table;
roles use each warp once; shared arrays and barriers have places that do not overlap; registers are indexed by constants
once the loops marked "unroll" are unrolled.
"""

from typing import NoReturn

from mortice.tile.diagnostics import TileError
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.thread import FUNCTIONS, OPS
from mortice.tile.ir.walk import walk

BARRIER_BYTES = 8


def check(function: s.Function) -> None:
    """Raises TileError at the first statement that is not of the thread level."""
    for launch in function.body:
        if isinstance(launch, s.Launch):
            _launch(launch)


def _launch(launch: s.Launch) -> None:
    unrolled = {
        node.var.name for node in walk(launch.body) if isinstance(node, s.For) and node.kind == "unroll"
    }
    for node in walk(launch.body):
        match node:
            case s.Copy() | s.Fill() | s.Gemm() | s.Reduce() | s.Scan() | s.Parallel():
                _fail(node, "a tile operator is left", "lower it")
            case s.Alloc() if node.buffer.scope == "fragment":
                _fail(node, f"{node.buffer.name} is still a fragment", "give it registers")
            case s.Op():
                _op(node)
            case s.Roles():
                _roles(node, launch)
            case e.Call() if len(node.args) != FUNCTIONS[node.name].args:
                _fail(
                    node,
                    f"{node.name} has {len(node.args)} arguments",
                    f"give {FUNCTIONS[node.name].args}",
                    node.name,
                )
            case e.Load() | s.Store() if node.buffer.scope == "local":
                _registers(node, unrolled)
    _places(launch)


def _op(op: s.Op) -> None:
    entry = OPS.get(op.name)
    if entry is None:
        _fail(op, f"there is no instruction {op.name}", "see mortice.tile.ir.thread", op.name)
    fixed = [kind for kind in entry.operands if not kind.endswith("...")]
    if len(op.operands) < len(fixed) or (len(fixed) == len(entry.operands) != len(op.operands)):
        _fail(op, f"it has {len(op.operands)} operands", f"they are {', '.join(entry.operands)}", op.name)
    for operand, kind in zip(op.operands, fixed, strict=False):
        if not _fits(operand, kind):
            _fail(op, f"an operand is no {kind}", f"they are {', '.join(entry.operands)}", op.name)
    if tuple(key for key, _ in op.attributes) != entry.attributes:
        _fail(
            op,
            f"its attributes are {op.attributes}",
            f"name {', '.join(entry.attributes) or 'none'}",
            op.name,
        )


def _fits(operand: e.Expr | e.Region, kind: str) -> bool:
    if kind == "value":
        return isinstance(operand, e.Expr)
    scopes = {
        "registers": "local",
        "address": "shared",
        "descriptor": "shared",
        "barrier": "barrier",
        "map": "map",
    }
    if kind == "global":
        return isinstance(operand, e.Load) and operand.buffer.scope == "global"
    return isinstance(operand, e.Region) and operand.buffer.scope == scopes[kind]


def _roles(roles: s.Roles, launch: s.Launch) -> None:
    warps = sum(role.warps for role in roles.roles)
    if launch.threads != 32 * warps:
        _fail(
            roles,
            f"the roles have {warps} warps, the block {launch.threads} threads",
            "share out all warps",
            "roles",
        )
    for role in roles.roles:
        if role.registers % 8 or not (role.registers == 0 or 24 <= role.registers <= 256):
            _fail(
                role,
                f"role {role.name} asks for {role.registers} registers",
                "24 to 256 in steps of 8",
                "roles",
            )


def _registers(node: e.Load | s.Store, unrolled: set[str]) -> None:
    for index in node.indices:
        if any(
            isinstance(x, e.Load | e.Call) or (isinstance(x, e.Var) and x.name not in unrolled)
            for x in walk(index)
        ):
            problem = "registers are indexed by what is known only at run time"
            _fail(node, problem, "unroll the loop of that index", node.buffer.name)


def _places(launch: s.Launch) -> None:
    taken: list[tuple[int, int, str]] = []
    for node in walk(launch.body):
        if isinstance(node, s.Alloc) and node.buffer.scope in ("shared", "barrier"):
            if node.at is None:
                _fail(
                    node, f"{node.buffer.name} has no place in shared memory", "plan memory", node.buffer.name
                )
            count = node.buffer.extents[0]
            size = count * (BARRIER_BYTES if node.buffer.scope == "barrier" else node.buffer.dtype.bytes)
            for start, end, name in taken:
                if node.at < end and start < node.at + size:
                    _fail(
                        node, f"{node.buffer.name} and {name} overlap in shared memory", "plan memory", name
                    )
            taken.append((node.at, node.at + size, node.buffer.name))


def _fail(node: e.Expr | s.Stmt, problem: str, remedy: str, operator: str = "") -> NoReturn:
    raise TileError(node.span, operator or type(node).__name__.lower(), problem, remedy)
