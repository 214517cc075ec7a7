"""Blocks from one mapping to another: one memcpy a run of consecutive blocks, the interpreter lock
released."""

from collections.abc import Callable
from ctypes import memmove

import numpy as np

# A transfer looks up from its copying this often, to see whether it should end. Not more often: the C library
# writes past the cache, up to twice as fast, only where one call copies much (above 64 MiB where measured).
CHUNK_BYTES = 256 << 20


def runs(source: np.ndarray, target: np.ndarray, longest: int) -> list[tuple[int, int, int]]:
    """(first source block, first target block, count) of each run consecutive on both sides, in order, none
    longer than `longest` blocks."""
    if not len(source):
        return []
    place = np.arange(len(source))
    opens = np.concatenate(([True], (np.diff(source) != 1) | (np.diff(target) != 1)))
    within = place - np.maximum.accumulate(np.where(opens, place, 0))
    starts = np.flatnonzero(within % longest == 0)
    counts = np.diff(starts, append=len(source))
    return list(zip(source[starts].tolist(), target[starts].tolist(), counts.tolist(), strict=True))


def copy_blocks(
    source: np.ndarray,
    source_ids: np.ndarray,
    target: np.ndarray,
    target_ids: np.ndarray,
    pause: Callable[[], None],
) -> None:
    """target[target_ids] = source[source_ids] without a buffer between; both C-contiguous uint8
    [blocks, bytes].

    `pause` is called before each CHUNK_BYTES, more or less; it ends the copy by raising.
    """
    block_bytes = source.shape[1]
    # ctypes calls memmove without the interpreter lock, with less overhead a call than numpy's copyto.
    source_base, target_base = source.ctypes.data, target.ctypes.data
    chunk = max(1, CHUNK_BYTES // block_bytes)
    since_pause = chunk
    for first, to, count in runs(source_ids, target_ids, chunk):
        if since_pause + count > chunk:
            pause()
            since_pause = 0
        since_pause += count
        memmove(target_base + to * block_bytes, source_base + first * block_bytes, count * block_bytes)
