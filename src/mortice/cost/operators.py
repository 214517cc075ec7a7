"""Every operator of a step as FLOPs and bytes, for the whole model on one device: where a roofline puts each of them."""

import msgspec

from mortice.cost.accounting import (
    attention_layer_flops,
    keys_seen,
    kv_layer_bytes,
    pairs,
)
from mortice.cost.conventions import HONEST, Convention
from mortice.cost.dtypes import dtype_bytes
from mortice.cost.layout import Formats
from mortice.specs.errors import RequestError
from mortice.specs.shape import AttentionShape, FfnShape, ModelShape

PHASES = ("decode", "prefill", "training")
ACTIVATION_BYTES = 2.0  # activations between operators are 16 bit


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """One operator, all layers that have it together."""

    name: str
    layers: int
    dtype: str
    flops: float
    weight_bytes: float
    state_bytes: float  # KV or state, read (and written, for a linear state)
    activation_bytes: float  # inputs read, outputs written

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.state_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """FLOP a byte."""
        return self.flops / self.bytes


def operators(
    model: ModelShape,
    phase: str,
    *,
    batch: float,
    context: float = 0.0,
    tokens: float = 0.0,
    prefix: float = 0.0,
    formats: Formats = Formats(),  # noqa: B008 (frozen)
    rule: Convention = HONEST,
) -> list[Operator]:
    """Operators of one step of `batch` sequences: decode of one token each at `context`, prefill of `tokens` after
    `prefix`, or a training step on `tokens` (forward and backward: 3 times the FLOPs; weights read twice, gradients
    written). Raises RequestError for another phase."""
    if phase not in PHASES:
        raise RequestError(f"phase {phase!r} is not known; known are {', '.join(PHASES)}", param="phase")
    rows = batch if phase == "decode" else batch * tokens
    merged: dict[str, Operator] = {}
    for group in model.groups:
        for each in (
            *_projections(model.hidden_size, group.attention, rows, formats.weights),
            _core(group.attention, phase, batch, context, tokens, prefix, formats, rule),
            *_ffn(model.hidden_size, group.ffn, rows, formats, rule),
        ):
            merged[each.name] = _add(merged.get(each.name), each, group.count)
    if rule.count_head:
        head = batch if phase == "prefill" else rows
        merged["linear.head"] = _product("linear.head", head, model.hidden_size, model.vocab_size, "bf16")
    listed = list(merged.values())
    return [_trained(each) for each in listed] if phase == "training" else listed


def _product(name: str, rows: float, inputs: float, outputs: float, dtype: str) -> Operator:
    return Operator(
        name=name,
        layers=1,
        dtype=dtype,
        flops=2.0 * rows * inputs * outputs,
        weight_bytes=inputs * outputs * dtype_bytes(dtype),
        state_bytes=0.0,
        activation_bytes=ACTIVATION_BYTES * rows * (inputs + outputs),
    )


def _projections(hidden: int, attention: AttentionShape, rows: float, dtype: str) -> list[Operator]:
    shapes = attention.matrices(hidden).items()
    return [_product(f"linear.{name}", rows, inputs, outputs, dtype) for name, (inputs, outputs) in shapes]


def _core(
    attention: AttentionShape,
    phase: str,
    batch: float,
    context: float,
    tokens: float,
    prefix: float,
    formats: Formats,
    rule: Convention,
) -> Operator:
    heads, width = attention.num_heads, attention.head_dim + attention.value_dim
    element = dtype_bytes(formats.kv)
    if phase == "decode":
        flops = batch * float(attention_layer_flops(attention, context, rule))
        state = batch * float(kv_layer_bytes(attention, context, element))
        rows = batch
    else:
        flops = 2.0 * heads * width * batch * float(pairs(attention, tokens, prefix, rule))
        state = batch * float(
            kv_layer_bytes(attention, float(keys_seen(attention, tokens + prefix)), element)
        )
        rows = batch * tokens
    if attention.kind == "linear":
        state *= 2.0
    return Operator(
        name=f"attention.{attention.kind}",
        layers=1,
        dtype=formats.attention,
        flops=flops,
        weight_bytes=0.0,
        state_bytes=state,
        activation_bytes=ACTIVATION_BYTES * rows * heads * width,
    )


def _ffn(hidden: int, ffn: FfnShape, rows: float, formats: Formats, rule: Convention) -> list[Operator]:
    listed = []
    if ffn.dense_size or ffn.shared_size:
        name, size = ("dense", ffn.dense_size) if ffn.dense_size else ("shared", ffn.shared_size)
        listed.append(_product(f"ffn.{name}", rows, hidden, ffn.matrices * size, formats.weights))
    if ffn.is_moe:
        touched = ffn.num_experts * (1.0 - (1.0 - ffn.top_k / ffn.num_experts) ** rows)
        chosen = _product(
            "ffn.experts", rows * ffn.top_k, hidden, ffn.matrices * ffn.expert_size, formats.weights
        )
        one = ffn.matrices * hidden * ffn.expert_size * dtype_bytes(formats.expert_weights)
        listed.append(
            msgspec.structs.replace(chosen, weight_bytes=touched * one, dtype=formats.expert_weights)
        )
        if rule.count_router:
            listed.append(_product("ffn.router", rows, hidden, ffn.num_experts, "bf16"))
    return listed


def _add(before: Operator | None, each: Operator, count: int) -> Operator:
    summed = {
        name: count * getattr(each, name) + (getattr(before, name) if before else 0)
        for name in ("layers", "flops", "weight_bytes", "state_bytes", "activation_bytes")
    }
    return msgspec.structs.replace(each, **summed)


def _trained(each: Operator) -> Operator:
    return msgspec.structs.replace(
        each,
        flops=3.0 * each.flops,
        weight_bytes=3.0 * each.weight_bytes,
        state_bytes=3.0 * each.state_bytes,
        activation_bytes=3.0 * each.activation_bytes,
    )
