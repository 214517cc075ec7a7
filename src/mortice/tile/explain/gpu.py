"""What the lowering for Hopper decided: read off the program itself, whose instructions carry the author's lines."""

from collections import defaultdict
from collections.abc import Iterable

from mortice.tile.diagnostics import Span
from mortice.tile.explain.note import Note, in_order
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.passes import run
from mortice.tile.passes.gpu.context import Note as Lowered
from mortice.tile.passes.tiling import GPU, decisions, tiling


def explain(function: s.Function, lowered: s.Function, notes: Iterable[Lowered]) -> list[Note]:
    """function: tile IR of any level; lowered: the thread dialect made of it; notes: what the lowering said."""
    out = [Note(x.span, "parallel", x.form, x.reason) for x in decisions(function, GPU)]
    said: dict[Span, list[Lowered]] = defaultdict(list)
    for note in notes:
        said[note.span].append(note)
        out.append(Note(note.span, note.operator, note.decision, note.reason, slow=True))
    ops: dict[Span, list[s.Op]] = defaultdict(list)
    for node in walk(lowered.body):
        if isinstance(node, s.Op):
            ops[node.span].append(node)
    for node in walk(run(function, (tiling(GPU),)).body):
        if isinstance(node, s.Copy):
            out += _copy(node, ops[node.span], bool(said[node.span]))
        elif isinstance(node, s.Gemm):
            out += _gemm(node, ops[node.span])
    return in_order(out)


def _copy(node: s.Copy, ops: list[s.Op], noted: bool) -> list[Note]:
    names = {op.name for op in ops}
    chip = node.source.buffer.on_chip, node.target.buffer.on_chip
    if "tma_load" in names:
        count = sum(op.name == "tma_load" for op in ops)
        boxes = f"{count} box{'es' if count > 1 else ''}"
        reason = "its tensor is 16-byte aligned with unit inner stride, its tile a swizzled one"
        return [Note(node.span, "copy", f"by the copy engine (TMA), {boxes} an iteration", reason)]
    if "tma_store" in names:
        return [
            Note(
                node.span,
                "copy",
                "out through stmatrix and the copy engine (TMA)",
                "the result keeps TMA's rules",
            )
        ]
    if chip[0] != chip[1] and not noted:
        reason = "no form of the copy engine fits: a launch without products, or no 16-bit fragment that a product made"
        return [Note(node.span, "copy", "by threads", reason, slow=True)]
    return []


def _gemm(node: s.Gemm, ops: list[s.Op]) -> list[Note]:
    products = [op for op in ops if op.name.startswith("wgmma") and op.attributes]
    products = [op for op in products if dict(op.attributes).get("n")]
    if not products:
        return []
    first = products[0]
    left = "registers" if first.name == "wgmma_registers" else "shared memory"
    types = f"{first.attribute('a_type')} x {first.attribute('b_type')}"
    return [
        Note(
            node.span,
            "gemm",
            f"wgmma m64n{first.attribute('n')}, {types}, a from {left}",
            f"{len(products)} instructions written out; the widest n that divides a warpgroup's columns",
        )
    ]
