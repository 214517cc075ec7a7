"""Multi-head latent attention, decode: all heads of a sequence against one latent head of keys, in pages, the keys split
over blocks (DeepSeek-V2, arXiv 2405.04434, section 2.1; the absorbed form)."""

from typing import Any

from mortice import tile
from mortice.ops.kernels.softmax import LOG2E, finish, online_softmax, softmax_state


@tile.kernel
def mla_decode(
    Q: tile.Tensor,
    KV: tile.Tensor,
    table: tile.Tensor,
    lengths: tile.Tensor,
    scale: float,
    *,
    DV: int = 512,
    BH: int = 64,
    BN: int = 0,
    splits: int = 8,
    stages: int = 2,
) -> Any:
    """Of each part of the keys, outputs Y [B, splits, H, DV] and log-sum-exps L [B, splits, H], f32. Q [B, H, D], KV
    [P, page, D] whose first DV columns are the values, table [B, pages] i32, lengths [B] i32; page divides BN, of which 0
    chooses 128 where all BH rows are heads (products decide) and 64 where fewer are (memory does)."""
    B, H, D = Q.shape
    _, page, D = KV.shape
    B, _ = table.shape
    (B,) = lengths.shape
    keys = BN if BN > 0 else 128 if H >= BH else 64
    assert DV <= D, "DV <= D"
    assert keys % page == 0, "BN % page == 0"
    assert scale > 0, "scale > 0"
    Y, L = tile.empty((B, splits, H, DV), tile.f32), tile.empty((B, splits, H), tile.f32)
    for h, part, b in tile.grid(tile.ceildiv(H, BH), splits, B):
        q, kv = tile.shared((BH, D), Q.dtype), tile.shared((keys, D), KV.dtype)
        s, p = tile.fragment((BH, keys), tile.f32), tile.shared((BH, keys), Q.dtype)
        o = tile.fragment((BH, DV), tile.f32, fill=0)
        m, shrink, total = softmax_state(BH)
        tile.copy(Q[b, h * BH :, :], q)
        length = lengths[b]
        tiles = tile.ceildiv(length, keys)
        each = tile.ceildiv(tiles, splits)
        for j in tile.pipelined(part * each, min((part + 1) * each, tiles), stages=stages):
            for x in tile.unroll(keys // page):
                tile.copy(KV[table[b, j * (keys // page) + x], :, :], kv[x * page : (x + 1) * page, :])
            tile.gemm(q, kv.T, s, clear=True)
            for x, y in tile.parallel(BH, keys):
                s[x, y] = s[x, y] if j * keys + y < length else -tile.inf
            online_softmax(s, scale * LOG2E, m, shrink, total, o)
            tile.copy(s, p)
            tile.gemm(p, kv[:, :DV], o)
        finish(o, scale * LOG2E, m, total)
        tile.copy(o, Y[b, part, h * BH :, :])
        tile.copy(m, L[b, part, h * BH :])
    return Y, L
