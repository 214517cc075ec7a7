"""What each instruction of the thread level becomes in the simulator's Python text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mortice.tile.diagnostics import UnsupportedError
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s

if TYPE_CHECKING:
    from mortice.tile.simulator.code import Code

VECTORS = ("load_global", "store_global", "cp_async")  # their tensor operand is an element, not an address


@dataclass
class Use:
    """One instruction where it stands. operands: their text; span, mask: names of the author's line and of the lanes."""

    code: "Code"
    op: s.Op
    operands: list[str]
    span: str
    mask: str

    @property
    def attributes(self) -> dict[str, int | str | bool]:
        return dict(self.op.attributes)

    def scalar(self, number: int, what: str) -> str:
        """An operand that must be the same in all lanes."""
        return self.uniform(self.operands[number], what)

    def uniform(self, text: str, what: str) -> str:
        return f"scalar({text}, {self.mask}, {self.span}, {what!r})"

    def region(self, number: int) -> e.Region:
        operand = self.op.operands[number]
        assert isinstance(operand, e.Region)
        return operand

    def registers(self, number: int) -> str:
        """The array and the first register, as two arguments."""
        region = self.region(number)
        return f"v_{region.buffer.name}, {self.code(region.offsets[0])}"

    def corner(self, first: int) -> str:
        return ", ".join(self.uniform(text, "coordinate") for text in self.operands[first:])


def write(code: "Code", op: s.Op) -> list[str]:
    """The lines for an instruction. Raises UnsupportedError for one the simulator does not know."""
    maker = INSTRUCTIONS.get(op.name)
    if maker is None:
        raise UnsupportedError(
            op.span, op.name, "the simulator does not know this instruction", "run it on a GPU"
        )
    operands = [] if op.name in VECTORS else [code.operand(operand) for operand in op.operands]
    return maker(Use(code, op, operands, code.span(op.span), code.mask))


def nothing(use: Use) -> list[str]:
    return []


def barrier_init(use: Use) -> list[str]:
    count = use.code.allocs[use.region(0).buffer.name].count
    return [f"B.barriers[{use.scalar(0, 'barrier')}] = Barrier({count}, {count})"]


def barrier_expect(use: Use) -> list[str]:
    return [f"arrive(B, W, {use.operands[0]}, {use.mask}, {use.span}, {use.scalar(1, 'bytes')})"]


def barrier_arrive(use: Use) -> list[str]:
    return [f"arrive(B, W, {use.operands[0]}, {use.mask}, {use.span})"]


def barrier_wait(use: Use) -> list[str]:
    return [f"yield from B.wait(W, {use.scalar(0, 'barrier')}, {use.scalar(1, 'parity')}, {use.span})"]


def tma_load(use: Use) -> list[str]:
    places = f"{use.scalar(0, 'address')}, {use.operands[1]}, {use.scalar(2, 'barrier')}"
    return [
        f"R.alone({use.mask}, {use.span}, 'tma_load')",
        f"tma_load(B, W, {places}, [{use.corner(3)}], {use.span})",
    ]


def tma_store(use: Use) -> list[str]:
    places = f"{use.operands[0]}, {use.scalar(1, 'address')}"
    adds = use.op.name == "tma_reduce_add"
    return [
        f"R.alone({use.mask}, {use.span}, {use.op.name!r})",
        f"tma_store(B, W, {places}, [{use.corner(2)}], {use.span}, {adds})",
    ]


def bulk_commit(use: Use) -> list[str]:
    return ["B.commit(W, 'bulk')"]


def bulk_wait(use: Use) -> list[str]:
    return [f"B.complete(W, 'bulk', {use.attributes['pending']})"]


def wgmma(use: Use) -> list[str]:
    left = use.scalar(1, "address") if use.op.name == "wgmma" else f"({use.registers(1)})"
    right, keep = use.scalar(2, "address"), use.scalar(3, "keep")
    return [f"wgmma(B, W, {use.registers(0)}, {left}, {right}, {keep}, {use.attributes}, {use.span})"]


def wgmma_fence(use: Use) -> list[str]:
    return ["W.dirty.clear()"]


def wgmma_commit(use: Use) -> list[str]:
    return ["B.commit(W, 'wgmma')", "yield"]


def wgmma_wait(use: Use) -> list[str]:
    return [f"B.complete(W, 'wgmma', {use.attributes['pending']})"]


def stmatrix(use: Use) -> list[str]:
    return [f"stmatrix(B, W, {use.operands[0]}, {use.registers(1)}, {use.attributes}, {use.span})"]


def load_shared(use: Use) -> list[str]:
    places = f"{use.registers(0)}, {use.operands[1]}"
    return [f"load_shared(B, W, {places}, {use.attributes}, {use.mask}, {use.span})"]


def store_shared(use: Use) -> list[str]:
    places = f"{use.operands[0]}, {use.registers(1)}"
    return [f"store_shared(B, W, {places}, {use.attributes}, {use.mask}, {use.span})"]


def global_vector(use: Use) -> list[str]:
    number = 1 if use.op.name == "load_global" else 0
    tensor = use.op.operands[number]
    assert isinstance(tensor, e.Load)
    where = f"{tensor.buffer.name!r}, ({use.code.list(tensor.indices)})"
    rest = f"{use.registers(1 - number)}, {use.attributes['bytes']}, {use.mask}, {use.span}"
    return [f"R.{use.op.name}({where}, {rest})"]


def cp_async(use: Use) -> list[str]:
    address, tensor, real = use.op.operands
    assert isinstance(tensor, e.Load)
    where = f"{tensor.buffer.name!r}, ({use.code.list(tensor.indices)})"
    places = f"{use.code.operand(address)}, {where}, {use.code.operand(real)}"
    return [f"R.cp_async(B, W, {places}, {use.attributes['bytes']}, {use.mask}, {use.span})"]


def cp_async_commit(use: Use) -> list[str]:
    return ["B.commit(W, 'cp_async')"]


def cp_async_wait(use: Use) -> list[str]:
    return [f"B.complete(W, 'cp_async', {use.attributes['pending']})"]


def ldmatrix(use: Use) -> list[str]:
    return [f"ldmatrix(B, W, {use.registers(0)}, {use.operands[1]}, {use.attributes}, {use.span})"]


def mma(use: Use) -> list[str]:
    registers = ", ".join(f"({use.registers(i)})" for i in range(3))
    return [f"mma({registers}, {use.attributes})"]


def fence_async(use: Use) -> list[str]:
    return ["B.clocks.fence(W.number)"]


def sync(use: Use) -> list[str]:
    number, threads = use.scalar(0, "sync"), use.scalar(1, "sync")
    return [f"yield from B.sync(W, {number}, {threads}, {use.span}, {use.op.name == 'sync'})"]


INSTRUCTIONS: dict[str, Callable[[Use], list[str]]] = {
    **dict.fromkeys(
        ("barrier_init_fence", "tma_prefetch", "sync_warp", "launch_dependents", "wait_dependencies"), nothing
    ),
    "barrier_init": barrier_init, "barrier_expect": barrier_expect, "barrier_arrive": barrier_arrive,
    "barrier_wait": barrier_wait, "tma_load": tma_load, "tma_store": tma_store, "tma_reduce_add": tma_store,
    "bulk_commit": bulk_commit, "bulk_wait": bulk_wait, "wgmma": wgmma, "wgmma_registers": wgmma,
    "wgmma_fence": wgmma_fence, "wgmma_commit": wgmma_commit, "wgmma_wait": wgmma_wait, "stmatrix": stmatrix,
    "load_shared": load_shared, "store_shared": store_shared, "load_global": global_vector,
    "store_global": global_vector, "cp_async": cp_async, "cp_async_commit": cp_async_commit, "cp_async_wait": cp_async_wait,
    "ldmatrix": ldmatrix, "mma": mma, "fence_async": fence_async, "sync": sync, "arrive": sync,
}  # fmt: skip
