"""What every layer of a step needs of the block tables, worked out once and kept in step.cache."""

import torch
from torch import Tensor

from mortice.models.step import KVCache, StepInput
from mortice.ops import attention
from mortice.ops.deterministic_attention import Tiles, lay_tiles


def attention_plan(
    step: StepInput, kv: KVCache, window: int, dtype: torch.dtype, *, in_place: bool
) -> attention.Plan:
    key = ("plan", window, in_place)
    found = step.cache.get(key)
    if found is None:
        found = step.cache[key] = attention.plan(
            step.query_start, step.context_lens, step.block_tables, kv.block_size, window, dtype, in_place
        )
    return found


def attention_tiles(step: StepInput, kv: KVCache, window: int) -> Tiles:
    """The plan of a deterministic step."""
    key = ("tiles", window)
    found: Tiles | None = step.cache.get(key)
    if found is None:
        found = step.cache[key] = lay_tiles(
            step.query_start, step.context_lens, step.block_tables, kv.block_size, window
        )
    return found


def write_rows(step: StepInput, kv: KVCache, plane: int) -> Tensor:
    """[T] int64: the row of kv.rows[layer][plane] that each new token is written to."""
    key = ("write", plane)
    found = step.cache.get(key)
    if found is None:
        block = step.slots // kv.block_size
        found = step.cache[key] = block * (kv.row_stride[plane] - kv.block_size) + step.slots
    return found
