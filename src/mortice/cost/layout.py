"""How a model lies on packages, in which formats, and what fits where."""

from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.cost.accounting import Number, kv_cache_bytes
from mortice.cost.conventions import HONEST
from mortice.cost.dtypes import dtype_bytes
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import AttentionShape, ModelShape


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Parallel layout of one instance, tp * dp * pp packages; each field an integer or an array of them.

    Attention: `dp` replicas, each split over `tp`. Dense FFN and shared experts: like attention. Routed experts: over
    all tp * dp packages of a stage, `ep` groups of experts, each expert split over the other tp * dp / ep.
    """

    tp: Number = 1
    dp: Number = 1
    ep: Number = 1
    pp: Number = 1

    @property
    def packages(self) -> Number:
        return self.stage_packages * np.asarray(self.pp)

    @property
    def stage_packages(self) -> Number:
        return cast(Number, np.asarray(self.tp) * np.asarray(self.dp))

    @property
    def expert_tp(self) -> Number:
        """Ways that one expert's matrices are split."""
        return self.stage_packages / np.asarray(self.ep)


class Formats(msgspec.Struct, frozen=True, kw_only=True):
    """Dtypes of what is stored, computed and sent (names of `dtypes.BYTES`)."""

    weights: str = "bf16"  # FFN and attention projections
    experts: str = ""  # routed experts; empty: as weights
    attention: str = "bf16"  # arithmetic of scores and values
    kv: str = "bf16"
    wire_out: str = "bf16"  # tokens to experts
    wire_back: str = "bf16"  # their results

    @property
    def expert_weights(self) -> str:
        return self.experts or self.weights


def layout_fits(model: ModelShape, layout: Layout) -> NDArray[np.bool_]:
    """Where the layout divides the model: heads by tp, experts by ep, packages by ep, layers at least pp."""
    tp, ep, pp = (np.asarray(each) for each in (layout.tp, layout.ep, layout.pp))
    stage = np.asarray(layout.stage_packages)
    fits = (stage % ep == 0) & (pp <= model.num_layers)
    for group in model.groups:
        fits = fits & (group.attention.num_heads % tp == 0)
        if group.ffn.is_moe:
            fits = fits & (group.ffn.num_experts % ep == 0) & (group.ffn.expert_size % layout.expert_tp == 0)
        else:
            fits = fits & (group.ffn.dense_size % tp == 0)
    if not model.moe_layers:
        fits = fits & (ep == 1)
    return cast(NDArray[np.bool_], fits)


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on the fullest package; arrays like the layout."""

    weights: Number
    kv: Number
    activations: Number

    @property
    def total(self) -> Number:
        return self.weights + self.kv + self.activations


RUNTIME_BYTES = 3.5e9  # context, graphs, communication buffers, fragmentation on one package


def weights_per_package(model: ModelShape, layout: Layout, formats: Formats) -> Number:
    """Bytes of weights on one package: attention and dense parts over tp, experts over the whole stage."""
    hidden = model.hidden_size
    element = dtype_bytes(formats.weights)
    tp, stage, pp = (np.asarray(each, dtype=float) for each in (layout.tp, layout.stage_packages, layout.pp))
    total: Number = 2.0 * (1 if model.tie_embeddings else 2) * model.vocab_size * hidden / tp
    for group in model.groups:
        split = group.attention.parameters(hidden) - replicated_parameters(group.attention, hidden)
        kept = replicated_parameters(group.attention, hidden) + split / tp
        shared = group.ffn.matrices * hidden * (group.ffn.dense_size + group.ffn.shared_size) / tp
        routed = group.ffn.matrices * hidden * group.ffn.num_experts * group.ffn.expert_size / stage
        total = total + group.count / pp * (
            element * (kept + shared)
            + dtype_bytes(formats.expert_weights) * routed
            + 2.0 * hidden * group.ffn.num_experts
        )
    return total


def replicated_parameters(attention: AttentionShape, hidden: int) -> int:
    """Weights of a layer's attention that every tensor-parallel rank holds whole: the projections to latents and to a
    single shared KV head."""
    kept = {"q_down", "kv_down"} | ({"kv"} if attention.num_kv_heads == 1 else set())
    shapes = attention.matrices(hidden)
    return sum(rows * columns for name, (rows, columns) in shapes.items() if name in kept)


def kv_per_sequence(model: ModelShape, layout: Layout, context: Number, formats: Formats) -> Number:
    """Bytes of one sequence's KV on one package of the replica that serves it: split over tp as far as there are KV
    heads (latents and a single head are whole on every rank), and over stages."""
    tp, pp = np.asarray(layout.tp, dtype=float), np.asarray(layout.pp, dtype=float)
    whole = kv_cache_bytes(model, context, formats.kv, HONEST)
    heads = min((1 if g.attention.latent_rank else g.attention.num_kv_heads for g in model.groups), default=1)
    return cast(Number, whole / np.minimum(tp, heads) / pp)


def device_memory(
    model: ModelShape, layout: Layout, batch: Number, context: Number, formats: Formats
) -> DeviceMemory:
    """Memory of one package for `batch` sequences of `context` tokens in the instance (all dp replicas together)."""
    weights = weights_per_package(model, layout, formats)
    kv = kv_per_sequence(model, layout, context, formats) * np.asarray(batch) / np.asarray(layout.dp)
    return DeviceMemory(weights=weights, kv=kv, activations=RUNTIME_BYTES + 0.0 * (weights + kv))


def max_batch(
    model: ModelShape,
    hardware: HardwareSpec,
    layout: Layout,
    context: Number,
    formats: Formats,
    share: float = 0.92,
) -> Number:
    """Most sequences of `context` tokens that an instance holds in `share` of its memory; 0 where not even the
    weights fit."""
    free = share * hardware.memory_bytes - RUNTIME_BYTES - weights_per_package(model, layout, formats)
    each = kv_per_sequence(model, layout, context, formats)
    return cast(Number, np.maximum(np.floor(free / each), 0.0) * np.asarray(layout.dp))
