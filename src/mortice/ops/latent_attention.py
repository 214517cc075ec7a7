"""Latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) over a paged cache of compressed KV.

A cached row is [latent (rank) | rotated key (rope)], one for all heads. `up` [H, nope + value, rank] makes a
head's key and value out of a latent; there are two ways to use it:

expanded   make keys and values of the whole context, then attend head by head: cheap per score, dear per key
absorbed   take the query through the key half of `up` instead, attend to the cached rows as they are, and
take the
           mixed latent through the value half: no work per key, but scores are rank + rope wide

A prompt chunk has many queries for each key and is expanded; decoding has few and is absorbed.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mortice.ops.attention import Group, Plan
from mortice.ops.deterministic_attention import Tiles, attend_tiles
from mortice.ops.rows import by_row_blocks

FEW = 16  # queries of one sequence in a step, up to which they are absorbed


def attend_latent(
    plain: Tensor, turned: Tensor, up: Tensor, held: Tensor, plane: Tensor, plan: Plan, scale: float
) -> Tensor:
    """Answers [T, H * value].

    `plain` [T, H, nope] and `turned` [T, H, rope] are the two parts of the queries, `held` [T, rank + rope]
    the step's own rows, already written to `plane` [num_blocks, block_size, 1, rank + rope].
    """
    values = up.shape[1] - plain.shape[2]
    out = plain.new_empty(plan.num_tokens, up.shape[0], values)
    for group in plan.groups:
        assert isinstance(group, Group)  # its plans are made without the compiled kernel
        rows = group.rows if group.rows is not None else torch.arange(plan.num_tokens, device=plain.device)
        q_plain, q_turned = plain.index_select(0, rows), turned.index_select(0, rows)
        if group.blocks is None:
            keys = held.index_select(0, rows)[None]
        else:
            keys = plane.index_select(0, group.blocks).view(group.num_seqs, -1, plane.shape[-1])
        form = absorbed if group.num_queries <= FEW else expanded
        out.index_copy_(0, rows, form(q_plain, q_turned, up, keys, group, scale))
    return out.flatten(1)


def absorbed(
    q_plain: Tensor, q_turned: Tensor, up: Tensor, keys: Tensor, group: Group, scale: float
) -> Tensor:
    """[n * q, H, value] for `keys` [n, L, rank + rope]. One KV head, whose query rows are tokens and
    heads."""
    n, new, (heads, nope) = group.num_seqs, group.num_queries, q_plain.shape[1:]
    rank = up.shape[2]
    q = torch.cat((into_latent(q_plain, up), q_turned), dim=-1).view(n, 1, new * heads, -1)
    mask = group.mask
    if mask is None:
        mask = q.new_full((new, new), float("-inf")).triu_(1)[None, None]
    mask = mask.repeat_interleave(heads, dim=2) if new > 1 else mask.expand(-1, -1, heads, -1)
    # torch's fused kernel wants keys and values of one width: the rotary part comes along and is cut off.
    mixed = F.scaled_dot_product_attention(q, keys[:, None], keys[:, None], attn_mask=mask, scale=scale)
    return out_of_latent(mixed.view(n * new, heads, -1)[..., :rank], up, nope)


def expanded(
    q_plain: Tensor, q_turned: Tensor, up: Tensor, keys: Tensor, group: Group, scale: float
) -> Tensor:
    """[n * q, H, value] for `keys` [n, L, rank + rope], through keys and values of every head."""
    n, new, (heads, nope) = group.num_seqs, group.num_queries, q_plain.shape[1:]
    rank, length = up.shape[2], keys.shape[1]
    latent, key = keys.split([rank, keys.shape[2] - rank], dim=-1)
    made = F.linear(latent, up.flatten(0, 1)).view(n, length, heads, -1).transpose(1, 2)
    k = torch.cat((made[..., :nope], key[:, None].expand(-1, heads, -1, -1)), dim=-1)
    v = F.pad(made[..., nope:], (0, max(0, k.shape[-1] - (made.shape[-1] - nope))))
    q = torch.cat((q_plain, q_turned), dim=-1).view(n, new, heads, -1).transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, group.mask, is_causal=group.mask is None, scale=scale)
    return y[..., : made.shape[-1] - nope].transpose(1, 2).reshape(n * new, heads, -1)


def into_latent(q_plain: Tensor, up: Tensor) -> Tensor:
    """[T, H, nope] to [T, H, rank]."""
    return torch.bmm(q_plain.transpose(0, 1), up[:, : q_plain.shape[2]]).transpose(0, 1)


def out_of_latent(mixed: Tensor, up: Tensor, nope: int) -> Tensor:
    """[T, H, rank] to [T, H, value]."""
    return torch.bmm(mixed.transpose(0, 1), up[:, nope:].transpose(1, 2)).transpose(0, 1)


def attend_latent_tiles(
    plain: Tensor, turned: Tensor, up: Tensor, plane: Tensor, tiles: Tiles, scale: float
) -> Tensor:
    """`attend_latent` of a deterministic step: always absorbed, products in blocks of rows."""
    nope, rank = plain.shape[2], up.shape[2]
    q = torch.cat((by_row_blocks(lambda rows: into_latent(rows, up), plain), turned), dim=-1)
    mixed = attend_tiles(q, plane, plane, tiles, scale)[..., :rank]
    return by_row_blocks(lambda rows: out_of_latent(rows, up, nope), mixed).flatten(1)
