"""What the passes of the CPU decided."""

from mortice.tile.explain.note import Note, in_order
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.passes import run
from mortice.tile.passes.cpu import cpu_passes
from mortice.tile.passes.tiling import CPU, decisions


def explain(function: s.Function, matrix_unit: bool) -> list[Note]:
    """In the order of the source. matrix_unit: whether the processor multiplies bf16 as it is (AMX, or dot products of
    AVX-512)."""
    notes = [Note(x.span, "parallel", x.form, x.reason) for x in decisions(function, CPU)]
    for node in walk(run(function, cpu_passes(matrix_unit)).body):
        match node:
            case s.Copy() if node.target.buffer.scope.startswith("panels"):
                kind = node.target.buffer.scope.removeprefix("panels_").replace("_", " ")
                reason = f"only gemm reads {node.target.buffer.name}, as its operand {kind}: one pass copies and packs"
                notes.append(Note(node.span, "copy", f"packed into {node.target.buffer.scope}", reason))
            case s.Unpack():
                notes += _unpack(node)
            case s.Gemm():
                notes += _gemm(node, matrix_unit)
            case s.For() if node.var.name.startswith("band"):
                reason = (
                    "some have one number a row, which are vectors then; the rows stay in the first cache"
                )
                notes.append(Note(node.span, "rows", "operators run through bands of rows", reason))
            case s.For() if node.var.name.startswith("row") and len(node.body) > 1:
                count = len(node.body)
                reason = "they touch what they write only in the row they are at, so a row stays in the first cache"
                notes.append(Note(node.span, "rows", f"{count} operators run row by row", reason))
            case s.If() if node.otherwise and isinstance(node.then[0], s.Parallel):
                reason = "it holds in every iteration of a whole tile; the loop with it runs at edges only"
                notes.append(Note(node.span, "parallel", "condition tested once, before the loop", reason))
            case s.Parallel():
                notes += _parallel(node)
    return in_order(notes)


def _unpack(node: s.Unpack) -> list[Note]:
    if node.target.buffer.scope == "panels_there":
        return [Note(node.span, "copy", "read where it lies", f"{node.source.buffer.name} is in panels")]
    return []


def _gemm(node: s.Gemm, matrix_unit: bool) -> list[Note]:
    dtype = node.a.buffer.dtype
    notes = []
    if dtype.name == "bf16":
        unit = "the matrix unit" if matrix_unit else "float32 vectors"
        why = "bf16 operands" if matrix_unit else "this processor has no unit for bf16"
        notes.append(Note(node.span, "gemm", f"in {unit}", why, not matrix_unit))
    elif dtype.name == "f32":
        notes.append(Note(node.span, "gemm", "in float32 vectors", "f32 operands"))
    else:
        reason = f"there is no micro-kernel for {dtype}; operands are widened each time"
        notes.append(Note(node.span, "gemm", "in float32 vectors", reason, True))
    for side, region, turned in (("a", node.a, node.transpose_a), ("b", node.b, node.transpose_b)):
        if not region.buffer.scope.startswith("panels") and (side == "b" or turned):
            reason = (
                f"{region.buffer.name} has other readers, two uses, or a copy that does not fill it from rows"
            )
            notes.append(Note(node.span, "gemm", f"operand {side} is packed at each product", reason, True))
    return notes


def _parallel(node: s.Parallel) -> list[Note]:
    notes = []
    for access in walk(node.body):
        if isinstance(access, e.Load | s.Store) and any(access.guards or ()):
            axes = ", ".join(str(i) for i, checked in enumerate(access.guards or ()) if checked)
            reason = f"dimension {axes} cannot be proven in bounds; a whole tile is tested once, an edge at each element"
            notes.append(Note(node.span, "parallel", f"accesses of {access.buffer.name} are checked", reason))
    inner = [x for x in walk(node.body) if isinstance(x, s.For | s.While | s.Atomic | s.Alloc | s.Check)]
    if inner:
        word = type(inner[0]).__name__.lower()
        notes.append(
            Note(inner[0].span, "parallel", "not vectorised", f"a {word} stands inside the loop", True)
        )
    return notes
