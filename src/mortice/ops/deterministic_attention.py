"""Attention whose numbers for a token do not depend on the rest of the batch or on how its prompt was cut.

Queries are laid into tiles of TILE by their position in the text, keys are read in blocks of fixed size from
the start of the text, and the softmax is accumulated block after block in float32. So a query always stands
in the same row of a product of the same shape, and meets its keys in the same order; blocks that only others
need are masked, which changes no bit of its sums. Elementwise functions of floats are vectorised except for
what is left over at the end of a thread's share, and there they round differently: shapes are kept so small
that one thread takes them, in whole vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mortice.ops.rows import SERIAL

TILE = 8  # queries
KEYS = 64  # keys of a block, or a cache block where that is larger
LOWEST = -1e30  # running maximum before the first key: finite, so that exp(-inf - LOWEST) is 0


@dataclass(frozen=True, slots=True)
class Tiles:
    """Where each token's query lies, and which keys each tile may read."""

    cell: Tensor  # [T] int64: tile * TILE + row
    first: Tensor  # [n] int64, position of each tile's first row
    tables: Tensor  # [n, B] int64, block tables by tile
    window: int
    block_size: int
    longest: int  # keys that the longest tile reads


def lay_tiles(
    query_start: Sequence[int],
    context_lens: Sequence[int],
    block_tables: Tensor,
    block_size: int,
    window: int,
) -> Tiles:
    """Arguments as in StepInput; `window` as in attention.plan."""
    cells: list[int] = []
    firsts: list[int] = []
    owners: list[int] = []
    for s, context in enumerate(context_lens):
        for position in range(context - (query_start[s + 1] - query_start[s]), context):
            tile = position // TILE * TILE
            if not owners or owners[-1] != s or firsts[-1] != tile:
                owners.append(s)
                firsts.append(tile)
            cells.append((len(firsts) - 1) * TILE + position - tile)
    device = block_tables.device
    tables = block_tables.index_select(0, torch.tensor(owners, device=device))
    longest = max(context_lens, default=0)
    return Tiles(
        torch.tensor(cells, device=device),
        torch.tensor(firsts, device=device),
        tables,
        window,
        block_size,
        longest,
    )


def attend_tiles(q: Tensor, k_plane: Tensor, v_plane: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """[T, H, Dv] in q's dtype, for `q` [T, H, D] and planes [num_blocks, block_size, G, D or Dv]."""
    num_tiles, heads, dim = len(tiles.first), q.shape[1], q.shape[2]
    kv_heads = k_plane.shape[2]
    share = heads // kv_heads
    keys = max(KEYS, tiles.block_size)
    together = max(1, SERIAL // (heads * TILE * keys))  # tiles of one product
    padded = -(-num_tiles // together) * together
    laid = q.new_zeros(padded * TILE, heads, dim, dtype=torch.float32)
    laid.index_copy_(0, tiles.cell, q.float() * scale)
    # [tiles, KV head, query heads of it * TILE, D]
    laid = (
        laid.view(padded, TILE, kv_heads, share, dim)
        .permute(0, 2, 3, 1, 4)
        .reshape(padded, kv_heads, -1, dim)
    )
    first = torch.cat((tiles.first, tiles.first.new_zeros(padded - num_tiles)))
    tables = torch.cat((tiles.tables, tiles.tables.new_zeros(padded - num_tiles, tiles.tables.shape[1])))
    done = [
        attend_chunk(
            laid[i : i + together],
            first[i : i + together],
            tables[i : i + together],
            k_plane,
            v_plane,
            tiles,
            keys,
        )
        for i in range(0, padded, together)
    ]
    out = torch.cat(done).view(padded, kv_heads, share, TILE, -1).permute(0, 3, 1, 2, 4)
    return out.reshape(padded * TILE, heads, -1).index_select(0, tiles.cell).to(q.dtype)


def attend_chunk(
    q: Tensor, first: Tensor, tables: Tensor, k_plane: Tensor, v_plane: Tensor, tiles: Tiles, keys: int
) -> Tensor:
    """[n, G, rows, Dv] for `q` [n, G, rows, D]: the running softmax over key blocks (arXiv 1805.02867)."""
    n, kv_heads, rows, _ = q.shape
    positions = (first[:, None] + torch.arange(TILE, device=q.device)).repeat(1, rows // TILE)  # [n, rows]
    peak = q.new_full((n, kv_heads, rows, 1), LOWEST)
    total = torch.zeros_like(peak)
    mixed = q.new_zeros(n, kv_heads, rows, v_plane.shape[3])
    per_block = keys // tiles.block_size
    end = min(tiles.longest, int(first.max()) + TILE)
    start = max(0, int(first.min()) - tiles.window + 1) // keys * keys if tiles.window else 0
    for at in range(start, end, keys):
        columns = torch.arange(at // tiles.block_size, at // tiles.block_size + per_block, device=q.device)
        blocks = tables.index_select(1, columns.clamp_(max=tables.shape[1] - 1)).flatten()
        key = torch.arange(at, at + keys, device=q.device)
        hidden = key > positions[..., None]
        if tiles.window:
            hidden |= key <= positions[..., None] - tiles.window
        k = k_plane.index_select(0, blocks).view(n, keys, kv_heads, -1).float().permute(0, 2, 3, 1)
        v = v_plane.index_select(0, blocks).view(n, keys, kv_heads, -1).float().transpose(1, 2)
        scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1)).view(n, kv_heads, rows, keys)
        scores.masked_fill_(hidden[:, None], float("-inf"))
        higher = torch.maximum(peak, scores.amax(dim=-1, keepdim=True))
        fade = whole_vectors_exp(peak - higher)
        weight = scores.sub_(higher).exp_()
        total = total * fade + weight.sum(dim=-1, keepdim=True)
        mixed = mixed * fade + torch.bmm(weight.flatten(0, 1), v.flatten(0, 1)).view_as(mixed)
        peak = higher
    return mixed / total


def whole_vectors_exp(x: Tensor) -> Tensor:
    """exp of [n, G, rows, 1]. Rows come in multiples of TILE, which need not fill vectors: widened, they
    do."""
    return x.expand(*x.shape[:-1], 32).exp()[..., :1]
