"""Rotary position embedding (arXiv 2104.09864) and the ways of stretching it to longer contexts.

Features i and i + dim / 2 of a head form a pair that is turned by position * frequency[i]. Weights that pair
neighbours are permuted when they are loaded, so this is the only layout at run time.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 1024  # positions that a table grows by; its size never changes a value


def default_frequencies(dim: int, theta: float) -> Tensor:
    """[dim / 2] float32: theta^(-2i / dim)."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def llama3_frequencies(plain: Tensor, factor: float, low: float, high: float, original: int) -> Tensor:
    """Llama 3.1: frequencies with fewer than `low` turns in the trained context are divided by `factor`,
    those with more than `high` are kept, and between the two they are blended."""
    turns = original * plain / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * plain / factor + blend * plain


def yarn_frequencies(
    dim: int, theta: float, factor: float, fast: float, slow: float, original: int, truncate: bool
) -> Tensor:
    """YaRN (arXiv 2309.00071, section 3.2): a ramp over the features between `fast` and `slow` turns."""

    def feature(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = feature(fast), feature(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    plain = theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return ramp / (factor * plain) + (1 - ramp) / plain


def dynamic_frequencies(positions: Tensor, dim: int, theta: float, factor: float, original: int) -> Tensor:
    """Dynamic NTK scaling, [T, dim / 2]: the base grows with the length of the text, here the token's own
    position plus one, so a token's rotation does not depend on how its prompt was cut. Within the trained
    context it is plain.
    """
    length = (positions + 1).clamp(min=original).to(torch.float32)
    base = theta * (factor * length / original - (factor - 1)) ** (dim / (dim - 2))
    return 1.0 / base[:, None] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


class RopeTable:
    """Cosines and sines by position, made in chunks as positions are first met.

    `frequencies` is [dim / 2], or a function from positions [T] to [T, dim / 2]. The sine's first half is
    negated: rotate() then needs no sign of its own.
    """

    def __init__(
        self,
        frequencies: Tensor | Callable[[Tensor], Tensor],
        scale: float,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.frequencies = frequencies
        self.scale = scale
        self.dtype = dtype
        self.device = device
        self.cos = torch.empty(0)
        self.sin = torch.empty(0)

    def grow(self, length: int) -> None:
        """Hold at least `length` positions."""
        cos, sin = [self.cos] if len(self.cos) else [], [self.sin] if len(self.sin) else []
        for start in range(len(self.cos), length, CHUNK):
            positions = torch.arange(start, start + CHUNK)
            per_pair = self.frequencies(positions) if callable(self.frequencies) else self.frequencies
            angles = positions.to(torch.float32)[:, None] * per_pair
            c, s = angles.cos() * self.scale, angles.sin() * self.scale
            cos.append(torch.cat((c, c), dim=-1).to(self.device, self.dtype))
            sin.append(torch.cat((-s, s), dim=-1).to(self.device, self.dtype))
        self.cos, self.sin = torch.cat(cos), torch.cat(sin)

    def rows(self, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [T, 1, dim], for `positions` [T], all below `longest`."""
        if longest > len(self.cos):
            self.grow(longest)
        return self.cos.index_select(0, positions)[:, None], self.sin.index_select(0, positions)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn `x` [T, heads, dim] by the rows of a RopeTable.

    Products and sum are rounded one by one: a fused multiply-add would round otherwise at the end of a
    thread's share.
    """
    return (x * cos).add_(x.roll(x.shape[-1] // 2, dims=-1).mul_(sin))
