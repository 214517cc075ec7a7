"""Matrix products as chains of wgmma."""

from mortice.tile import dtypes
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.thread import OPS
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu.context import Context
from mortice.tile.passes.gpu.tensors import multiple
from mortice.tile.passes.gpu.tiles import SharedTile

PAIRS = {(dtypes.bf16, dtypes.bf16), (dtypes.f16, dtypes.f16)} | {
    (x, y) for x in (dtypes.e4m3, dtypes.e5m2) for y in (dtypes.e4m3, dtypes.e5m2)
}
WIDEST = 256


def why_no_wgmma(x: s.Gemm) -> str | None:
    """The first rule of the matrix unit that this product breaks."""
    pair = (x.a.buffer.dtype, x.b.buffer.dtype)
    if pair not in PAIRS:
        return f"no matrix unit multiplies {pair[0]} by {pair[1]} and adds in f32 exactly"
    if x.c.buffer.scope != "fragment" or x.c.buffer.dtype != dtypes.f32:
        return f"{x.c.buffer.name} is no fragment of f32"
    rows, columns = x.c.buffer.extents[-2:]
    if rows % 64 or columns % 8:
        return f"{x.c.buffer.name} is {rows} x {columns}: rows go by 64, columns by 8"
    if x.b.buffer.scope != "shared":
        return f"{x.b.buffer.name} is no shared tile"
    k = int(x.a.shape[0 if x.transpose_a else 1].value)  # type: ignore[attr-defined]
    step = 32 // pair[0].bytes
    if k % step:
        return f"the inner extent {k} is no multiple of {step}"
    if pair[0].bytes == 1 and (x.transpose_a or not x.transpose_b):
        return "operands of 8 bits have their inner dimension last in memory"
    return None


def issue(
    cx: Context,
    x: s.Gemm,
    tiles: dict[str, SharedTile],
    side_by_side: bool,
    steps: range | None = None,
    columns: range | None = None,
) -> None:
    """The chain for the running warpgroup; the caller fences, commits and waits. steps: of the inner dimension, and columns:
    of those the warpgroup computes, that this part of the chain is about (None: all)."""
    layout = cx.layouts[x.c.buffer.name]
    rows, total = layout.shape
    groups = cx.groups
    side_by_side = side_by_side or rows < 64 * groups
    each = total // groups if side_by_side else total
    columns = columns or range(each)
    blocks = rows // 64 if side_by_side else rows // 64 // groups
    narrow = x.a.buffer.dtype.bytes == 1
    step = 32 if narrow else 16
    inner = int(x.a.shape[0 if x.transpose_a else 1].value)  # type: ignore[attr-defined]
    panel = tiles[x.b.buffer.name].panel_columns
    beside = groups if side_by_side else 1

    def whole(n: int) -> bool:
        """Where columns run along memory: does no product begin within one panel and end in another?"""
        starts = range(0, beside * each, n)
        return x.transpose_b or all(at % panel == 0 or at % panel + n <= panel for at in starts)

    width = next(
        n
        for n in range(min(len(columns), WIDEST), 0, -8)
        if each % n == 0 and len(columns) % n == 0 and columns.start % n == 0 and whole(n)
    )
    d = cx.registers[x.c.buffer.name]
    group = a.call("warpgroup")
    first_row = a.const(0) if side_by_side else a.mul(group, rows // groups)
    first_column = a.mul(group, each) if side_by_side else a.const(0)
    keep_first = e.Const(dtypes.index, 0)
    for block in range(blocks):
        for left in range(columns.start, columns.stop, width):
            register = (block * each + left) // 2
            for number in steps or range(inner // step):
                k = a.const(number)
                keep = keep_first if x.clear and number == 0 else a.const(1)
                b, b_fields = _operand(
                    cx, x.b, tiles, a.add(first_column, left), k, step, k_last=x.transpose_b, side="b"
                )
                common: dict[str, int | str | bool] = {
                    "n": width,
                    "a_type": x.a.buffer.dtype.name,
                    "b_type": x.b.buffer.dtype.name,
                }
                out = a.box(d, register, width // 2)
                if x.a.buffer.scope == "fragment":
                    held = cx.registers[x.a.buffer.name]
                    place = a.add(a.mul(k, 4), block * inner // 4)
                    cx.op(
                        "wgmma_registers", out, a.box(held, place, 4), b, keep, span=x.span,
                        **_ordered(common | b_fields, OPS["wgmma_registers"].attributes),
                    )  # fmt: skip
                    continue
                row = a.add(first_row, block * 64)
                a_operand, a_fields = _operand(
                    cx, x.a, tiles, row, k, step, k_last=not x.transpose_a, side="a"
                )
                cx.op(
                    "wgmma", out, a_operand, b, keep, span=x.span,
                    **_ordered(common | a_fields | b_fields, OPS["wgmma"].attributes),
                )  # fmt: skip


def _operand(
    cx: Context,
    region: e.Region,
    tiles: dict[str, SharedTile],
    first: e.Expr,
    k: e.Expr,
    step: int,
    k_last: bool,
    side: str,
) -> tuple[e.Region, dict[str, int | str | bool]]:
    """Address of the operand's corner for one step, and its descriptor. first: row (of a) or column (of b)."""
    tile = tiles[region.buffer.name]
    if not tile.width:
        cx.refuse(region, "gemm", f"rows of {tile.name} are no multiple of 32 bytes", "make the tile wider")
    top, left = region.offsets[-2], region.offsets[-1]
    per_panel = tile.panel_columns
    if not isinstance(left, e.Const) or int(left.value) % per_panel:
        cx.refuse(
            region, "gemm", f"the box of {tile.name} does not begin with a panel", "begin at a constant panel"
        )
    panel0 = int(left.value) // per_panel
    fields: dict[str, int | str | bool]
    if k_last:
        # Rows are the outer index, K runs along them: 32 bytes a step, then the next panel.
        steps = per_panel // step
        within = a.mul(a.digit(k, 1, steps), 32) if tile.panels > 1 or steps > 1 else a.const(0)
        panel = (
            build.binary("floordiv", k, a.const(steps))
            if steps & (steps - 1)
            else (build.binary("shr", k, a.const(steps.bit_length() - 1)) if steps > 1 else k)
        )
        offset = a.add(
            tile.origin,
            a.mul(a.add(top, first), tile.width),
            within,
            a.mul(panel, tile.panel_bytes),
            panel0 * tile.panel_bytes,
        )
        fields = {"major": "k", "swizzle": tile.width, "leading": 16, "stride": 8 * tile.width}
    else:
        # Rows are K; the outer index runs along them, from panel to panel.
        if tile.dtype.bytes != 2:
            cx.refuse(region, "gemm", f"{tile.name} of {tile.dtype} has K in its rows", "store it transposed")
        panel = a.digit(first, per_panel, 1 << 20)
        offset = a.add(
            tile.origin,
            a.mul(a.add(top, a.mul(k, step)), tile.width),
            a.mul(panel, tile.panel_bytes),
            panel0 * tile.panel_bytes,
            0 if multiple(first, per_panel) else a.mul(a.digit(first, 1, per_panel), tile.dtype.bytes),
        )
        fields = {"major": "mn", "swizzle": tile.width, "leading": tile.panel_bytes, "stride": 8 * tile.width}
    return cx.address(offset), {f"{side}_{key}": value for key, value in fields.items()}


def _ordered(found: dict[str, int | str | bool], names: tuple[str, ...]) -> dict[str, int | str | bool]:
    return {name: found[name] for name in names}
