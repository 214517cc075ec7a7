"""Weights in 8 and 4 bits, for products of few rows that wait for memory.

GroupedWeight goes through the compiled kernels. Without them Int8Weight and Int4Weight go through torch's, which read
the integers directly and are about three times faster than bfloat16 at one row, but do not use the matrix unit: from
`FEW` rows on, expanding the weight and multiplying as usual is faster.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mortice.ops.compiled import GROUP, Kernels

# Rows. With 2 threads on 576 x 1536: 16 rows take 0.3 to 0.4 ms here and 0.7 expanded, 32 rows 0.8 to 1.0 and
# 0.6.
FEW = 20


class GroupedWeight:
    """Groups of GROUP columns of a row share a scale: w = (code - 128) * scale in 8 bits, code * scale + low in 4.

    Up to 16 rows of x are rounded to 8 bits themselves, group by group, and the products are of integers.
    """

    batch_invariant = False

    def __init__(self, codes: Tensor, scale: Tensor, low: Tensor, bits: int, kernels: Kernels) -> None:
        """`codes` [N, K] uint8 below 2^bits; `scale`, `low` [N, K / GROUP], kept in float16."""
        self.kernels, self.bits = kernels, bits
        self.shape = tuple(codes.shape)
        self.packed = kernels.pack_groups(codes, scale.half(), low.half(), bits)
        self.nbytes = self.packed.nbytes

    @staticmethod
    def quantize(weight: Tensor, bits: int, kernels: Kernels) -> "GroupedWeight":
        """8 bits: the largest magnitude of a group at 127 from the middle; 4 bits: its smallest entry at 0, its
        largest at 15."""
        grouped = weight.float().view(weight.shape[0], -1, GROUP)
        low, high = grouped.aminmax(dim=-1)
        if bits == 8:
            scale = rounded_half(torch.maximum(high, -low) / 127)
            codes = (grouped / scale[..., None]).round_().clamp_(-127, 127).add_(128)
        else:
            scale, low = rounded_half((high - low) / 15), low.half().float()
            codes = ((grouped - low[..., None]) / scale[..., None]).round_().clamp_(0, 15)
        return GroupedWeight(codes.to(torch.uint8).view(weight.shape), scale, low, bits, kernels)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.kernels.matmul_groups(x, self.packed, bias, self.shape[0], self.bits)

    def rows(self, ids: Tensor) -> Tensor | None:
        return self.kernels.unpack_group_rows(self.packed, ids, self.shape[1], self.bits)


def rounded_half(scale: Tensor) -> Tensor:
    """`scale` as float16 will keep it, above zero."""
    return scale.clamp(min=2**-24).half().float()


class Int8Weight:
    """w[n, k] = codes[n, k] * scale[n]."""

    batch_invariant = False

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        """`codes` [N, K] int8, `scale` [N] in the dtype of activations."""
        self.codes = codes
        self.scale = scale
        self.shape = tuple(codes.shape)
        self.nbytes = codes.nbytes + scale.nbytes
        # torch's bfloat16 kernel reads 16 columns at a time, past the end of a row that is not a multiple of
        # that.
        self.fused = codes.shape[1] % 16 == 0

    @staticmethod
    def quantize(weight: Tensor) -> "Int8Weight":
        """Symmetric, the largest entry of a row at 127."""
        wide = weight.float()
        scale = (wide.abs().amax(dim=1) / 127).clamp(min=1e-12).to(weight.dtype)
        codes = (wide / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        return Int8Weight(codes, scale)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.fused and len(x) < FEW:
            y = torch._weight_int8pack_mm(x.contiguous(), self.codes, self.scale)
        else:
            y = F.linear(x, self.codes.to(x.dtype)).mul_(self.scale)
        return y if bias is None else y.add_(bias)

    def rows(self, ids: Tensor) -> Tensor | None:
        return None


class Int4Weight:
    """w[n, k] = (code - 8) * scale + zero, with one scale and one zero for GROUP columns of a row.

    Held twice: as the fused kernel wants it, which is private to torch, and as plain nibbles to expand.
    """

    batch_invariant = False

    def __init__(self, codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> None:
        """`codes` [N, K] uint8 below 16; `scale`, `zero` [N, K / GROUP]. Rows must be a multiple of 16."""
        self.shape = rows, columns = tuple(codes.shape)
        halves = codes.t().reshape(columns // GROUP, 2, GROUP // 2, rows)
        self.nibbles = halves[:, 0] | halves[:, 1] << 4
        self.scale = scale.to(dtype).t()[:, None].contiguous()
        self.zero = (zero - 8 * scale).to(dtype).t()[:, None].contiguous()
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        self.groups = torch.stack((scale, zero), dim=-1).to(dtype).transpose(0, 1).contiguous()
        self.nbytes = self.packed.nbytes + self.groups.nbytes

    @staticmethod
    def fits(rows: int, columns: int) -> bool:
        return rows % 16 == 0 and columns % GROUP == 0

    @staticmethod
    def quantize(weight: Tensor) -> "Int4Weight":
        """The smallest entry of a group at code 0, the largest at 15."""
        grouped = weight.float().view(weight.shape[0], -1, GROUP)
        low, high = grouped.aminmax(dim=-1)
        scale = ((high - low) / 15).clamp(min=1e-12)
        codes = ((grouped - low[..., None]) / scale[..., None]).round_().clamp_(0, 15).to(torch.uint8)
        return Int4Weight(codes.view(weight.shape), scale, low + 8 * scale, weight.dtype)

    def expand(self) -> Tensor:
        """W^T [K, N] in the dtype of activations. Columns of W lie slowest, so that a scale is applied to
        whole rows of memory: half the time of the other order."""
        rows, columns = self.shape
        wide = torch.empty(columns // GROUP, 2, GROUP // 2, rows, dtype=self.scale.dtype)
        wide[:, 0].copy_(self.nibbles & 15)
        wide[:, 1].copy_(self.nibbles >> 4)
        grouped = wide.view(columns // GROUP, GROUP, rows)
        return torch.addcmul(self.zero, grouped, self.scale, out=grouped).view(columns, rows)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if len(x) < FEW:
            y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
                x.contiguous(), self.packed, GROUP, self.groups
            )
        else:
            y = x @ self.expand()
        return y if bias is None else y.add_(bias)

    def rows(self, ids: Tensor) -> Tensor | None:
        return None
