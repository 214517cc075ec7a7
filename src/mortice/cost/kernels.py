"""Seconds of one operator on one package: the roofline with padding, efficiency and a launch floor.

All sizes may be arrays. Where a `Calibration` covers an operator its measured ratio to this model is applied
(cost/calibration.py); the formulas here are what it corrects, and what is left where nothing was measured.
"""

from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from mortice.cost.accounting import (
    LINEAR_CHUNK,
    STATE_BYTES,
    Number,
    keys_seen,
    score_value_dims,
)
from mortice.cost.assumption import Assumption
from mortice.cost.conventions import HONEST
from mortice.cost.dtypes import arithmetic_dtype, dtype_bytes
from mortice.cost.efficiency import Efficiency, efficiency
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import AttentionShape

KNEE = 4.0  # exponent of the smooth maximum of arithmetic and memory in attention (fitted to Table 9)

# Kernels that are known to be slow where the roofline would have them fast: (framework, attention family) -> factor.
# aiconfigurator-core 0.12.0: TRT-LLM decode attention at 64 query heads, 1 KV head, d 256 on H200, 50 to 100 times.
SLOW_KERNELS = {("trtllm", "MFA"): 50.0}


class Correction(Protocol):
    """Measured over modelled time of an operator, elementwise; 1 where nothing near was measured."""

    def ratio(self, operator: str, variant: str, features: dict[str, Number]) -> Number: ...

    def assumptions(self) -> tuple[Assumption, ...]: ...


def smooth_max(a: Number, b: Number) -> Number:
    """(a^4 + b^4)^(1/4): two bounds that are near each other cost more than either."""
    return cast(Number, np.power(np.power(a, KNEE) + np.power(b, KNEE), 1 / KNEE))


def padded(value: Number, tile: int) -> NDArray[np.float64]:
    """`value` rounded up to whole tiles."""
    return np.ceil(np.asarray(value, dtype=float) / tile) * tile


class Kernels:
    """Times of operators on one kind of hardware."""

    def __init__(
        self,
        hardware: HardwareSpec,
        calibration: Correction | None = None,
        *,
        shares: Efficiency | None = None,
        framework: str = "",
        pad_tiles: bool = True,
    ) -> None:
        """`framework` names the engine whose missing kernels are priced; `pad_tiles` off is for comparison only."""
        self.hardware = hardware
        self.shares = shares or efficiency(hardware.architecture)
        self.calibration = calibration
        self.framework = framework
        self.pad_tiles = pad_tiles

    def assumptions(self) -> tuple[Assumption, ...]:
        """What rests on no measurement of this machine."""
        listed = self.shares.assumptions(self.hardware.architecture)
        if self.calibration is not None:
            listed += self.calibration.assumptions()
        return listed

    def gemm(self, m: Number, n: Number, k: Number, dtype: str) -> Number:
        """(m, k) activations times (k, n) weights of `dtype`; activations are read and written in 16 bit."""
        rows, columns = self.hardware.gemm_tile if self.pad_tiles else (1, 1)
        flops = 2.0 * padded(m, rows) * padded(n, columns) * k
        moved = np.asarray(n) * k * dtype_bytes(dtype) + 2.0 * (np.asarray(m) * k + np.asarray(m) * n)
        peak = self.peak(dtype) * self.shares.gemm_compute
        launch = self.shares.launch_s + (self.shares.quantise_s if dtype_bytes(dtype) < 2 else 0.0)
        time = launch + np.maximum(
            flops / peak, moved / (self.hardware.memory_bytes_per_s * self.shares.gemm_memory)
        )
        return self._corrected("gemm", dtype, {"m": m, "n": n, "k": k}, time)

    def experts(
        self,
        tokens: Number,
        hidden: int,
        size: Number,
        num_experts: int,
        top_k: int,
        ep: Number,
        dtype: str,
        imbalance: Number = 1.0,
        matrices: int = 3,
    ) -> Number:
        """Grouped product of the routed experts that one rank holds.

        `tokens` are all tokens of the exchange, `size` the experts' width on this rank (their size over the tensor
        split), `ep` the ranks over which experts lie. `imbalance` is the busiest rank's load over the mean.
        """
        total, local = np.asarray(tokens, dtype=float), num_experts / np.asarray(ep, dtype=float)
        loaded = total * top_k / ep * imbalance  # pairs of token and expert on the busiest rank
        touched = local * (1.0 - (1.0 - top_k / num_experts) ** total)  # experts with at least one token
        touched = np.maximum(touched, np.minimum(1.0, loaded))
        rows, columns = self.hardware.gemm_tile if self.pad_tiles else (1, 1)
        work = touched * padded(loaded / np.maximum(touched, 1e-9), rows)
        flops = 2.0 * matrices * work * hidden * padded(size, columns)
        moved = touched * matrices * hidden * np.asarray(size) * dtype_bytes(dtype)
        moved = moved + loaded * (2.0 * hidden * 2 + 2.0 * np.asarray(size) * (matrices - 1))
        peak = self.peak(dtype) * self.shares.gemm_compute
        time = self.shares.experts_launch_s + np.maximum(
            flops / peak, moved / (self.hardware.memory_bytes_per_s * self.shares.experts_memory)
        )
        features: dict[str, Number] = {
            "tokens": total,
            "hidden": hidden,
            "size": size,
            "experts": num_experts,
            "top_k": top_k,
            "ep": ep,
        }
        return self._corrected("experts", dtype, features, time)

    def decode_attention(
        self,
        attention: AttentionShape,
        batch: Number,
        context: Number,
        *,
        tp: Number = 1,
        q_len: int = 1,
        kv_dtype: str = "bf16",
        dtype: str = "bf16",
    ) -> Number:
        """Scores and values of `batch` sequences, `q_len` tokens each, of one layer on one of `tp` ranks."""
        heads = attention.num_heads / np.asarray(tp, dtype=float)
        if attention.kind == "linear":
            state = STATE_BYTES * attention.kv_elements / np.asarray(tp) * np.asarray(batch)
            bandwidth = self.hardware.memory_bytes_per_s * self.shares.attention_memory
            return cast(Number, self.shares.attention_launch_s + 2.0 * state * q_len / bandwidth)
        latent = attention.latent_rank > 0
        kv_heads = 1.0 if latent else np.maximum(1.0, attention.num_kv_heads / np.asarray(tp, dtype=float))
        rows = heads / kv_heads * q_len
        if self.pad_tiles:
            rows = padded(rows, self.hardware.tile_rows)
        keys = keys_seen(attention, context)
        flops = 2.0 * kv_heads * rows * sum(score_value_dims(attention, HONEST)) * keys * batch
        elements = attention.kv_elements if latent else kv_heads * (attention.head_dim + attention.value_dim)
        moved = elements * dtype_bytes(kv_dtype) * keys * np.asarray(batch)
        compute = flops / (self.peak(dtype) * self.shares.attention_compute[attention.family])
        memory = moved / (self.hardware.memory_bytes_per_s * self.shares.attention_memory)
        slow = SLOW_KERNELS.get((self.framework, attention.family), 1.0)
        time = self.shares.attention_launch_s + slow * smooth_max(compute, memory)
        features = {
            "batch": batch,
            "context": keys,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": attention.head_dim if not latent else attention.latent_rank + attention.rope_dim,
            "q_len": q_len,
        }
        operator = "decode_mla" if latent else "decode_attention"
        return self._corrected(operator, kv_dtype, features, time)

    def prefill_attention(
        self,
        attention: AttentionShape,
        tokens: Number,
        prefix: Number = 0.0,
        *,
        batch: Number = 1,
        tp: Number = 1,
        dtype: str = "bf16",
    ) -> Number:
        """Causal attention of `batch` prompts of `tokens` new tokens after `prefix` cached ones, one layer, one rank.

        Bound by arithmetic and, where its rate is known, by the unit that computes exponentials.
        """
        heads = attention.num_heads / np.asarray(tp, dtype=float)
        new, old = np.asarray(tokens, dtype=float), np.asarray(prefix, dtype=float)
        if attention.kind == "linear":
            pairs = new * (0.5 * LINEAR_CHUNK + attention.head_dim)
        else:
            pairs = new * old + 0.5 * new * new
            if attention.kind in ("window", "chunk"):
                bound = new * attention.window * (0.5 if attention.kind == "chunk" else 1.0)
                pairs = np.minimum(pairs, bound)
        each = heads * pairs * batch
        width = attention.head_dim + attention.value_dim
        compute = 2.0 * width * each / (self.peak(dtype) * self.shares.prefill_compute)
        if self.hardware.exp_per_s and attention.kind != "linear":
            compute = np.maximum(compute, each / self.hardware.exp_per_s)
        time = self.shares.attention_launch_s + compute
        features = {
            "batch": batch,
            "tokens": new,
            "prefix": old,
            "heads": heads,
            "kv_heads": np.maximum(1.0, attention.num_kv_heads / np.asarray(tp, dtype=float)),
            "head_dim": attention.head_dim,
        }
        operator = "prefill_mla" if attention.latent_rank else "prefill_attention"
        return self._corrected(operator, dtype, features, time)

    def elementwise(self, moved: Number, launches: float) -> Number:
        """Norms, rotary, activation, residual: memory traffic and launches."""
        bandwidth = self.hardware.memory_bytes_per_s * self.shares.elementwise_memory
        return cast(Number, launches * self.shares.launch_s + np.asarray(moved) / bandwidth)

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s of a product with such weights; four-bit weights are unpacked to BF16 where the hardware does
        not compute in four bits."""
        name = arithmetic_dtype(dtype)
        if name == "fp4" and "fp4" not in self.hardware.peaks:
            name = "bf16"
        return self.hardware.peak(name)

    def _corrected(self, operator: str, variant: str, features: dict[str, Number], time: Number) -> Number:
        if self.calibration is None:
            return time
        return time * self.calibration.ratio(operator, variant, features)
