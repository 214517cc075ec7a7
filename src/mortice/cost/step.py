"""Seconds of a decode or prefill step of an instance, operator by operator, for many layouts at once.

The honest convention: what a step takes on the busiest package, from `Kernels` (tiles, efficiency, launches; measured
where measured) and `Links`. Parts are named `stage.operator`; the stage is attention, linear, ffn, communication or
other. Nothing is overlapped: what overlaps is for the caller (AFD pipelines, two micro-batches).
"""

from typing import cast

import msgspec
import numpy as np

from mortice.cost.accounting import Number
from mortice.cost.assumption import Assumption, merge
from mortice.cost.dtypes import dtype_bytes
from mortice.cost.kernels import Kernels
from mortice.cost.layout import Formats, Layout
from mortice.cost.links import Links
from mortice.cost.speculation import NO_SPECULATION, Speculation
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import AttentionShape, FfnShape, ModelShape

REPLICATED = ("q_down", "kv_down")  # projections that tensor parallelism does not split
ROW_SPLIT = ("o",)  # split over their inputs; the others over their outputs


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one step by part, and what they rest on."""

    parts: dict[str, Number]
    assumed: tuple[Assumption, ...] = ()

    def stage_s(self, stage: str) -> Number:
        """Sum of a stage's parts."""
        chosen = [value for name, value in self.parts.items() if name.startswith(stage + ".")]
        return sum(chosen, start=np.float64(0.0))

    @property
    def total_s(self) -> Number:
        return sum(self.parts.values(), start=np.float64(0.0))

    @property
    def attention_s(self) -> Number:
        return self.stage_s("attention")

    @property
    def linear_s(self) -> Number:
        return self.stage_s("linear")

    @property
    def ffn_s(self) -> Number:
        return self.stage_s("ffn")

    @property
    def communication_s(self) -> Number:
        return self.stage_s("communication")

    @property
    def other_s(self) -> Number:
        return self.stage_s("other")


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One step's load on a replica: `rows` tokens through the matrices; decode reads `context` for each of `batch`
    sequences, prefill attends `tokens` new tokens after `prefix`."""

    phase: str  # decode or prefill
    rows: Number  # tokens of one dp replica in this step
    batch: Number  # sequences of one dp replica
    context: Number = 0.0
    q_len: int = 1
    tokens: Number = 0.0
    prefix: Number = 0.0
    head_rows: Number = 0.0  # tokens that meet the LM head


def decode_step(
    model: ModelShape,
    kernels: Kernels,
    layout: Layout,
    batch: Number,
    context: Number,
    *,
    formats: Formats = Formats(),  # noqa: B008 (frozen)
    speculation: Speculation = NO_SPECULATION,
    imbalance: Number = 1.0,
) -> Step:
    """One decode step of `batch` sequences of `context` tokens in an instance (all replicas and stages together).

    With pp > 1 the batch goes through in pp micro-batches, one a stage; the time is that of all stages, which is
    the time between two tokens of a sequence. With speculation divide by `accepted` for the time of a token.
    """
    micro = np.asarray(batch, dtype=float) / np.asarray(layout.dp) / np.asarray(layout.pp)
    q_len = speculation.drafted + 1
    work = Work(
        phase="decode", rows=micro * q_len, batch=micro, context=context, q_len=q_len, head_rows=micro * q_len
    )
    return _step(model, kernels, layout, work, formats, imbalance)


def prefill_step(
    model: ModelShape,
    kernels: Kernels,
    layout: Layout,
    tokens: Number,
    prefix: Number = 0.0,
    *,
    batch: Number = 1,
    formats: Formats = Formats(),  # noqa: B008 (frozen)
    imbalance: Number = 1.0,
) -> Step:
    """Prefill of `batch` prompts, each of `tokens` new tokens after `prefix` cached ones, spread over the replicas;
    at least one replica works on a whole prompt."""
    mine = np.maximum(np.asarray(batch, dtype=float) / np.asarray(layout.dp), 1.0)
    rows = mine * np.asarray(tokens, dtype=float)
    work = Work(phase="prefill", rows=rows, batch=mine, tokens=tokens, prefix=prefix, head_rows=mine)
    return _step(model, kernels, layout, work, formats, imbalance)


def attention_side(
    model: ModelShape,
    kernels: Kernels,
    layer: AttentionShape,
    *,
    tp: Number = 1,
    batch: Number,
    context: Number,
    formats: Formats = Formats(),  # noqa: B008 (frozen)
    q_len: int = 1,
) -> Step:
    """One layer of an attention instance of AFD: projections, attention, norms and router for `batch` sequences of one
    replica, without any communication."""
    rows = np.asarray(batch, dtype=float) * q_len
    work = Work(phase="decode", rows=rows, batch=batch, context=context, q_len=q_len)
    parts = _attention(model.hidden_size, kernels, layer, tp, work, formats)
    parts["other.norms"] = _norms(model.hidden_size, kernels, rows)
    return Step(parts=parts, assumed=kernels.assumptions())


def ffn_side(
    model: ModelShape,
    kernels: Kernels,
    layer: FfnShape,
    *,
    tokens: Number,
    ep: Number = 1,
    tp: Number = 1,
    formats: Formats = Formats(),  # noqa: B008 (frozen)
    imbalance: Number = 1.0,
) -> Step:
    """One layer of an FFN instance of ep * tp packages for `tokens` tokens of all attention instances together,
    without any communication."""
    parts = _ffn(
        model.hidden_size, kernels, layer, tokens, tokens, ep, tp, tp * np.asarray(ep), formats, imbalance
    )
    return Step(parts=parts, assumed=kernels.assumptions())


def _step(
    model: ModelShape, kernels: Kernels, layout: Layout, work: Work, formats: Formats, imbalance: Number
) -> Step:
    links = Links(kernels.hardware)
    hidden, tp = model.hidden_size, layout.tp
    parts: dict[str, Number] = {}
    for group in model.groups:
        layer = _attention(hidden, kernels, group.attention, tp, work, formats)
        everyone = work.rows * np.asarray(layout.dp)
        layer |= _ffn(
            hidden,
            kernels,
            group.ffn,
            work.rows,
            everyone,
            layout.ep,
            layout.expert_tp,
            tp,
            formats,
            imbalance,
        )
        layer["other.norms"] = _norms(hidden, kernels, work.rows)
        layer |= _communication(hidden, links, group.ffn, layout, work.rows, formats)
        for name, seconds in layer.items():
            parts[name] = parts.get(name, 0.0) + group.count * seconds
    stages = np.asarray(layout.pp, dtype=float)
    head = kernels.gemm(work.head_rows, model.vocab_size / np.asarray(tp), hidden, "bf16")
    parts["linear.head"] = head * (stages if work.phase == "decode" else 1.0)
    hop = links.point_to_point(2.0 * work.rows * hidden) if kernels.hardware.has_link("scale_out") else 0.0
    parts["communication.stages"] = cast(Number, np.where(stages > 1, (stages - 1) * hop, 0.0))
    assumed = merge(kernels.assumptions(), links.assumptions(), _imbalance_assumed(model, imbalance))
    return Step(parts=parts, assumed=assumed)


def _imbalance_assumed(model: ModelShape, imbalance: Number) -> tuple[Assumption, ...]:
    if not model.moe_layers:
        return ()
    low, high = float(np.min(imbalance)), float(np.max(imbalance))
    said = f"{low:g}" if low == high else f"{low:.3g} to {high:.3g}"
    return (Assumption("expert imbalance", said, "load of the busiest rank over the mean"),)


def _attention(
    hidden: int, kernels: Kernels, layer: AttentionShape, tp: Number, work: Work, formats: Formats
) -> dict[str, Number]:
    split = np.asarray(tp, dtype=float)
    parts: dict[str, Number] = {}
    for name, (rows, columns) in layer.matrices(hidden).items():
        m = work.rows
        if name in REPLICATED:
            parts[f"linear.{name}"] = kernels.gemm(m, columns, rows, formats.weights)
        elif name in ROW_SPLIT:
            parts[f"linear.{name}"] = kernels.gemm(m, columns, rows / split, formats.weights)
        elif name == "kv" and layer.kind != "linear":
            ways = np.minimum(split, layer.num_kv_heads)
            parts[f"linear.{name}"] = kernels.gemm(m, columns / ways, rows, formats.weights)
        else:
            parts[f"linear.{name}"] = kernels.gemm(m, columns / split, rows, formats.weights)
    if work.phase == "decode":
        parts["attention.core"] = kernels.decode_attention(
            layer,
            work.batch,
            work.context,
            tp=tp,
            q_len=work.q_len,
            kv_dtype=formats.kv,
            dtype=formats.attention,
        )
    else:
        parts["attention.core"] = kernels.prefill_attention(
            layer, work.tokens, work.prefix, batch=work.batch, tp=tp, dtype=formats.attention
        )
    return parts


def _ffn(
    hidden: int,
    kernels: Kernels,
    layer: FfnShape,
    rows: Number,
    everyone: Number,
    ep: Number,
    expert_tp: Number,
    tp: Number,
    formats: Formats,
    imbalance: Number,
) -> dict[str, Number]:
    """`rows` are a replica's own tokens (dense and shared parts, split over `tp`), `everyone` all of the exchange."""
    parts: dict[str, Number] = {}
    wide = (layer.dense_size or layer.shared_size) / np.asarray(tp, dtype=float)
    if layer.dense_size or layer.shared_size:
        name = "dense" if layer.dense_size else "shared"
        up = kernels.gemm(rows, (layer.matrices - 1) * wide, hidden, formats.weights)
        parts[f"ffn.{name}"] = up + kernels.gemm(rows, hidden, wide, formats.weights)
    if layer.is_moe:
        parts["ffn.router"] = kernels.gemm(rows, layer.num_experts, hidden, "bf16")
        parts["ffn.experts"] = kernels.experts(
            everyone,
            hidden,
            layer.expert_size / np.asarray(expert_tp, dtype=float),
            layer.num_experts,
            layer.top_k,
            ep,
            formats.expert_weights,
            imbalance,
            layer.matrices,
        )
    return parts


def _norms(hidden: int, kernels: Kernels, rows: Number) -> Number:
    """Two norms with residual, rotary, activation and quantisation: about twelve passes over the hidden state."""
    return kernels.elementwise(24.0 * np.asarray(rows) * hidden, launches=4)


def _communication(
    hidden: int, links: Links, layer: FfnShape, layout: Layout, rows: Number, formats: Formats
) -> dict[str, Number]:
    """An all-reduce after attention and one after the FFN inside a replica; between replicas experts are reached by
    dispatch and combine instead."""
    reduce = links.all_reduce(layout.tp, 2.0 * np.asarray(rows) * hidden)
    parts = {"communication.attention": reduce}
    if not layer.is_moe:
        parts["communication.ffn"] = reduce
        return parts
    stage = layout.stage_packages
    mine = np.asarray(rows) / np.asarray(layout.tp)  # a replica's ranks share the sending of its tokens
    sent = links.dispatch(stage, mine, hidden * dtype_bytes(formats.wire_out), layer.top_k)
    back = links.dispatch(stage, mine, hidden * dtype_bytes(formats.wire_back), layer.top_k)
    alone = np.asarray(layout.dp) == 1
    parts["communication.ffn"] = cast(Number, np.where(alone, reduce, 0.0))
    parts["communication.dispatch"] = cast(Number, np.where(alone, 0.0, sent))
    parts["communication.combine"] = cast(Number, np.where(alone, 0.0, back))
    return parts


def usd_per_mtok(hardware: HardwareSpec, packages: Number, tokens: Number, seconds: Number) -> Number:
    """USD of 10^6 tokens where `packages` yield `tokens` in `seconds`."""
    rate = np.asarray(tokens) / np.asarray(seconds)
    return cast(Number, 1e6 * hardware.usd_per_second * np.asarray(packages) / rate)
