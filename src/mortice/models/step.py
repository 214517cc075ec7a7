"""What a model is given for one step, and where it keeps KV."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """Rows of the batch that go through one LoRA adapter."""

    name: str
    rows: Tensor  # [R] int64, indices into the T tokens


@dataclass(slots=True)
class StepInput:
    """A ragged batch of S sequences and T new tokens, laid end to end. Written by the engine, read by the
    model.

    Sequence s owns tokens query_start[s] to query_start[s + 1]; they are the last of its context_lens[s]
    tokens. The KV of token t of the batch is written to block slots[t] // block_size, offset slots[t] %
    block_size, before attention reads it.
    """

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, from 0
    query_start: list[int]  # S + 1 entries, the first is 0
    context_lens: list[int]  # S entries, new tokens included
    block_tables: Tensor  # [S, B] int64, rows padded with 0
    slots: Tensor  # [T] int64
    logit_rows: Tensor  # [R] int64: tokens whose logits are wanted
    adapters: tuple[AdapterRows, ...] = ()
    deterministic: bool = False  # each token's numbers must not depend on the rest of the batch
    cache: dict = field(
        default_factory=dict
    )  # per-step values that every layer needs (masks, gathered indices)

    @property
    def num_seqs(self) -> int:
        return len(self.context_lens)

    @property
    def max_query(self) -> int:
        starts = self.query_start
        return max(b - a for a, b in pairwise(starts))


class KVCache:
    """Typed views over the bytes of a block pool.

    `planes[layer][p]` is a strided view [num_blocks, block_size, heads, dim] of plane p of that layer: all
    layers of a block lie together in memory, so the first stride is a whole block (specs/kv.py draws it).
    `rows[layer][p]` is the same plane as rows [_, heads * dim], of which row `block * row_stride[p] + offset`
    is one token's; the rows between belong to other layers. Attention masks what it must not see by adding
    -inf, so the bytes must be finite numbers: hand in memory that was zeroed once.
    """

    def __init__(
        self,
        memory: Tensor,
        *,
        num_layers: int,
        planes: tuple[tuple[int, int], ...],
        block_size: int,
        dtype: torch.dtype,
    ) -> None:
        """`memory`: uint8 [num_blocks, block_bytes], contiguous, on the model's device."""
        pool = memory.view(dtype)
        num_blocks, block_elements = pool.shape
        expected = num_layers * sum(h * d for h, d in planes) * block_size
        if block_elements != expected:
            raise ValueError(f"a block has {block_elements} elements, its layout asks for {expected}")
        self.memory = memory
        self.block_size = block_size
        self.planes: list[tuple[Tensor, ...]] = []
        self.rows: list[tuple[Tensor, ...]] = []
        self.row_stride = tuple(block_elements // (h * d) for h, d in planes)
        if any(block_elements % (h * d) for h, d in planes):
            raise ValueError(
                f"planes {planes} do not tile a block of {block_elements} elements in whole rows"
            )
        offset = 0
        for _ in range(num_layers):
            views, rows = [], []
            for (heads, dim), per_block in zip(planes, self.row_stride, strict=True):
                shape = (num_blocks, block_size, heads, dim)
                stride = (block_elements, heads * dim, dim, 1)
                views.append(pool.as_strided(shape, stride, pool.storage_offset() + offset))
                count = (num_blocks - 1) * per_block + block_size
                rows.append(
                    pool.as_strided((count, heads * dim), (heads * dim, 1), pool.storage_offset() + offset)
                )
                offset += block_size * heads * dim
            self.planes.append(tuple(views))
            self.rows.append(tuple(rows))
