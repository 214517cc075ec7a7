"""Attention over a paged KV cache, for a ragged batch that mixes prompt chunks and decode rows.

`plan` is made once a step and holds every index; the layers then only gather and multiply. Sequences with
equally many new tokens and contexts of similar length form a group that is one call of torch's fused
attention: all decode rows of a step are usually one group, each prompt chunk is its own. Where the compiled kernel
runs, decode rows are one group whatever their lengths, and their keys are read where they lie.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mortice.ops.compiled import MAX_HEAD_DIM, load

ROWS = 32  # queries of a prompt come in multiples of so many, see `_spare_rows`


@dataclass(frozen=True, slots=True)
class Group:
    """n sequences with q new tokens each, whose keys are gathered from b blocks each."""

    rows: Tensor | None  # [n * q] int64, tokens of the batch; None: all of them, in order
    num_seqs: int
    num_queries: int
    blocks: Tensor | None  # [n * b] int64; None: the step's own keys are all there is
    mask: Tensor | None  # [n, 1, q, b * block_size], 0 or -inf in the queries' dtype; None: causal


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """n sequences with one new token each, for the compiled kernel."""

    rows: Tensor | None  # [n] int64, tokens of the batch; None: all of them, in order
    tables: Tensor  # [n, B] int64
    context: Tensor  # [n] int64
    window: int


@dataclass(frozen=True, slots=True)
class Plan:
    groups: tuple[Group | DecodeGroup, ...]
    num_tokens: int


def plan(
    query_start: Sequence[int],
    context_lens: Sequence[int],
    block_tables: Tensor,
    block_size: int,
    window: int,
    dtype: torch.dtype,
    in_place: bool,
) -> Plan:
    """`window`: a token sees the last `window` tokens, itself included; 0: all. `in_place`: the compiled kernel can
    decode. Other arguments as in StepInput."""
    made: list[Group | DecodeGroup] = []
    decoding: list[int] = []
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for s, context in enumerate(context_lens):
        new = query_start[s + 1] - query_start[s]
        if new == 1 and in_place:
            decoding.append(s)
            continue
        fresh = new == context and (window == 0 or new <= window)
        reach = min(context, window + new) if window else context
        # A group is as wide as its widest member: contexts that differ by more than four times are kept
        # apart.
        groups[new, -1 - s if fresh and new > 1 else max(reach, 256).bit_length() // 2].append(s)
    if decoding:
        made.append(decode_group(decoding, query_start, context_lens, block_tables, window))
    made += [
        build_group(
            members, new, kind < 0, query_start, context_lens, block_tables, block_size, window, dtype
        )
        for (new, kind), members in groups.items()
        if new
    ]
    return Plan(tuple(made), query_start[-1])


def decode_group(
    members: list[int],
    query_start: Sequence[int],
    context_lens: Sequence[int],
    block_tables: Tensor,
    window: int,
) -> DecodeGroup:
    context = torch.tensor([context_lens[s] for s in members])
    if len(members) == query_start[-1]:
        return DecodeGroup(None, block_tables.contiguous(), context, window)
    rows = torch.tensor([query_start[s] for s in members])
    return DecodeGroup(rows, block_tables.index_select(0, torch.tensor(members)), context, window)


def build_group(
    members: list[int],
    new: int,
    fresh: bool,
    query_start: Sequence[int],
    context_lens: Sequence[int],
    block_tables: Tensor,
    block_size: int,
    window: int,
    dtype: torch.dtype,
) -> Group:
    device = block_tables.device
    starts = torch.tensor([query_start[s] for s in members], device=device)
    whole = len(members) * new == query_start[-1] and members == sorted(members)
    rows = None if whole else (starts[:, None] + torch.arange(new, device=device)).flatten()
    if fresh:
        return Group(rows, len(members), new, None, None)
    contexts = [context_lens[s] for s in members]
    # The first block that any query of a sequence can see, and how many from there on cover the longest
    # member.
    first = [max(0, c - new + 1 - window) // block_size if window else 0 for c in contexts]
    count = max(-(-c // block_size) - f for c, f in zip(contexts, first, strict=True))
    columns = torch.tensor(first, device=device)[:, None] + torch.arange(count, device=device)
    tables = block_tables.index_select(0, torch.tensor(members, device=device))
    blocks = tables.gather(1, columns.clamp_(max=tables.shape[1] - 1))
    keys = torch.tensor(first, device=device)[:, None] * block_size + torch.arange(
        count * block_size, device=device
    )
    queries = torch.tensor(contexts, device=device)[:, None] - new + torch.arange(new, device=device)
    hidden = keys[:, None, :] > queries[:, :, None]
    if window:
        hidden |= keys[:, None, :] <= queries[:, :, None] - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
    return Group(rows, len(members), new, blocks.flatten(), mask[:, None])


def attend(
    q: Tensor, k: Tensor, v: Tensor, k_plane: Tensor, v_plane: Tensor, plan: Plan, scale: float
) -> Tensor:
    """softmax(q k^T * scale) v over each token's context.

    `q` [T, H, D]; `k`, `v` [T, G, D] are the step's own keys and values, already written to the planes
    [num_blocks, block_size, G, D]. Head h reads KV head h // (H / G). Answers [T, H * D].
    """
    if len(plan.groups) == 1 and plan.groups[0].rows is None:
        (group,) = plan.groups
        if isinstance(group, DecodeGroup):
            return attend_in_place(q, k_plane, v_plane, group, scale)
        return attend_group(q, k, v, k_plane, v_plane, group, scale).reshape(plan.num_tokens, -1)
    out = q.new_empty(q.shape)
    for group in plan.groups:
        rows = group.rows
        assert rows is not None
        chosen = q.index_select(0, rows)
        if isinstance(group, DecodeGroup):
            part = attend_in_place(chosen, k_plane, v_plane, group, scale)
        else:
            fresh = group.blocks is None
            k_part, v_part = (k.index_select(0, rows), v.index_select(0, rows)) if fresh else (k, v)
            part = attend_group(chosen, k_part, v_part, k_plane, v_plane, group, scale)
        out.index_copy_(0, rows, part.reshape(-1, *q.shape[1:]))
    return out.flatten(1)


def can_attend_in_place(q_dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the compiled kernel takes heads of `q_dim`."""
    return (
        dtype is torch.bfloat16
        and device.type == "cpu"
        and q_dim % 32 == 0
        and q_dim <= MAX_HEAD_DIM
        and load() is not None
    )


def attend_in_place(q: Tensor, k_plane: Tensor, v_plane: Tensor, group: DecodeGroup, scale: float) -> Tensor:
    """[n, H * D] for `q` [n, H, D]."""
    compiled = load()
    assert compiled is not None
    return compiled.paged_attention(q, k_plane, v_plane, group.tables, group.context, group.window, scale)


def _spare_rows(count: int, q: Tensor) -> int:
    """Rows that fill `count` up to a multiple of 32. torch's kernel for 16-bit numbers on a CPU keeps code for every size of
    a last block that it has met, 0.3 MB each and for ever; causality and the mask hide what is added."""
    is_kept = q.device.type == "cpu" and q.dtype is not torch.float32 and count > ROWS
    return -count % ROWS if is_kept else 0


def attend_group(
    q: Tensor, k: Tensor, v: Tensor, k_plane: Tensor, v_plane: Tensor, group: Group, scale: float
) -> Tensor:
    """Answers [n, q, H, D] for `q` [n * q, H, D]."""
    n, new, (heads, dim) = group.num_seqs, group.num_queries, q.shape[1:]
    kv_heads = k_plane.shape[2]
    share = heads // kv_heads
    spare = _spare_rows(new, q)
    if group.blocks is None:
        if spare:
            q, k, v = (F.pad(x, (0, 0, 0, 0, 0, spare)) for x in (q, k, v))
        # KV heads go to the batch dimension and are spread over their query heads by a stride of 0, not by a
        # copy.
        q5 = q.unflatten(1, (kv_heads, share)).permute(1, 2, 0, 3)
        k5 = k.transpose(0, 1)[:, None].expand(-1, share, -1, -1)
        v5 = v.transpose(0, 1)[:, None].expand(-1, share, -1, -1)
        out = F.scaled_dot_product_attention(q5, k5, v5, is_causal=True, scale=scale)
        return out.permute(2, 0, 1, 3)[:new]
    keys = k_plane.index_select(0, group.blocks).view(n, -1, kv_heads, dim).transpose(1, 2)
    values = v_plane.index_select(0, group.blocks).view(n, -1, kv_heads, dim).transpose(1, 2)
    assert group.mask is not None
    if new == 1:  # heads that share keys are the query rows: the keys are read once for all of them
        out = F.scaled_dot_product_attention(
            q.reshape(n, kv_heads, share, dim),
            keys,
            values,
            attn_mask=group.mask.expand(-1, -1, share, -1),
            scale=scale,
        )
        return out.reshape(n, 1, heads, dim)
    q5 = q.reshape(n, new, kv_heads, share, dim).permute(0, 2, 3, 1, 4).reshape(n * kv_heads, share, new, dim)
    length = keys.shape[2]
    k5 = keys.reshape(n * kv_heads, 1, length, dim).expand(-1, share, -1, -1)
    v5 = values.reshape(n * kv_heads, 1, length, dim).expand(-1, share, -1, -1)
    mask = group.mask.expand(-1, kv_heads, -1, -1).reshape(n * kv_heads, 1, new, length)
    if spare:
        q5, mask = (F.pad(x, (0, 0, 0, spare)) for x in (q5, mask))
    out = F.scaled_dot_product_attention(q5, k5, v5, attn_mask=mask, scale=scale)[:, :, :new]
    return out.reshape(n, kv_heads, share, new, dim).permute(0, 3, 1, 2, 4).reshape(n, new, heads, dim)
