"""What the uncorrected kernel model says of measured rows, and the least time that physics allows them."""

from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.cost.efficiency import Efficiency
from mortice.cost.kernels import Kernels
from mortice.cost.profile_table import ProfileTable
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import AttentionShape

MLA_RANK, MLA_ROPE, MLA_NOPE, MLA_VALUE = 512, 64, 128, 128  # every measured MLA is DeepSeek's

IDEAL = Efficiency(
    attention_memory=1.0,
    attention_compute=dict.fromkeys(("MHA", "GQA", "MQA", "MFA", "MLA", "linear"), 1.0),
    prefill_compute=1.0,
    gemm_compute=1.0,
    gemm_memory=1.0,
    experts_memory=1.0,
    elementwise_memory=1.0,
    launch_s=0.0,
    attention_launch_s=0.0,
    experts_launch_s=0.0,
    collective_s=0.0,
    source="no loss at all: a lower bound",
)


def modelled(table: ProfileTable, kernels: Kernels) -> NDArray[np.float64]:
    """Seconds of each row after `kernels`; RequestError where the hardware lacks the variant's arithmetic."""
    f = table.features
    if table.operator == "gemm":
        return np.asarray(kernels.gemm(f["m"], f["n"], f["k"], table.variant))
    if table.operator == "experts":
        return _by_shape(
            table, ("hidden", "experts", "top_k"), lambda rows, key: _experts(rows, key, kernels)
        )
    if table.operator.startswith("decode"):
        return _by_shape(
            table, ("heads", "kv_heads", "head_dim", "q_len"), lambda rows, key: _decode(rows, key, kernels)
        )
    return _by_shape(table, ("heads", "kv_heads", "head_dim"), lambda rows, key: _prefill(rows, key, kernels))


def lower_bound(table: ProfileTable, hardware: HardwareSpec) -> NDArray[np.float64]:
    """Seconds below which no kernel can be: the roofline at full peaks, nothing padded."""
    ideal = Kernels(msgspec.structs.replace(hardware, exp_per_s=None), shares=IDEAL, pad_tiles=False)
    return modelled(table, ideal)


def _by_shape(
    table: ProfileTable,
    names: tuple[str, ...],
    price: Callable[[ProfileTable, tuple[int, ...]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Prices rows shape by shape: the features in `names` are scalars to the kernel model."""
    keys = np.stack([table.features[name] for name in names], axis=1)
    shapes, which = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(which.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(which.ravel(), minlength=len(shapes)))
    seconds = np.empty(len(table))
    for shape, rows in zip(shapes, np.split(order, ends[:-1]), strict=True):
        seconds[rows] = price(table.take(rows), tuple(int(value) for value in shape))
    return seconds


def _experts(rows: ProfileTable, key: tuple[int, ...], kernels: Kernels) -> NDArray[np.float64]:
    hidden, experts, top_k = key
    f = rows.features
    return np.asarray(kernels.experts(f["tokens"], hidden, f["size"], experts, top_k, f["ep"], rows.variant))


def _shape(rows: ProfileTable, heads: int, kv_heads: int, head_dim: int) -> AttentionShape:
    if rows.operator.endswith("mla"):
        return AttentionShape(
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=MLA_NOPE + MLA_ROPE,
            value_dim=MLA_VALUE,
            latent_rank=MLA_RANK,
            rope_dim=MLA_ROPE,
        )
    return AttentionShape(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, value_dim=head_dim)


def _decode(rows: ProfileTable, key: tuple[int, ...], kernels: Kernels) -> NDArray[np.float64]:
    heads, kv_heads, head_dim, q_len = key
    shape, f = _shape(rows, heads, kv_heads, head_dim), rows.features
    return np.asarray(
        kernels.decode_attention(shape, f["batch"], f["context"], q_len=q_len, kv_dtype=rows.variant)
    )


def _prefill(rows: ProfileTable, key: tuple[int, ...], kernels: Kernels) -> NDArray[np.float64]:
    shape, f = _shape(rows, *key), rows.features
    return np.asarray(
        kernels.prefill_attention(shape, f["tokens"], f["prefix"], batch=f["batch"], dtype=rows.variant)
    )
