"""Attention and experts on different instances: whole instances, micro-batches, batch and price of the best plan.

An attention instance A has `gpus` packages, each with a batch of its own (data parallel); an FFN instance F has as many
packages that hold its share of the experts, split inside by tensor parallelism and between instances by experts
(Step-3, section 3). Times come from the cost model, the iteration from `pipeline`, links are tested at both ends.
"""

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.cost import (
    Assumption,
    Formats,
    Links,
    attention_side,
    dtype_bytes,
    ffn_side,
    kv_cache_bytes,
)
from mortice.cost.accounting import attention_parameters, ffn_parameters
from mortice.cost.efficiency import Efficiency, efficiency
from mortice.cost.layout import RUNTIME_BYTES
from mortice.plan.af_ratio import expected_max_of_normals
from mortice.plan.exchange import expected_imbalance
from mortice.plan.links import send_probability
from mortice.plan.measured import MODELLED, Measured
from mortice.plan.pipeline import RESOURCES, Stages
from mortice.plan.placement import formats_for
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec, TierName
from mortice.specs.shape import LayerGroup, ModelShape

MEMORY_SHARE = 0.92  # of a package; the rest is fragmentation
JITTER_S = 0.002  # between minimum and mean TPOT with every cure applied (StepMesh)
MAX_INSTANCES = 4096
MAX_MICRO_BATCHES = 16
MAX_PER_GPU = 1024  # sequences of one package in one micro-batch
NVLS_SHARE = 0.744  # of a node's link, all-gather and reduce-scatter (NCCL on H100: 335 of 450 GB/s)

Times = NDArray[np.float64]


class AfdProblem(msgspec.Struct, frozen=True, kw_only=True):
    """What is planned. Prices may be missing only if `usd` is not asked for."""

    model: ModelShape
    attention: HardwareSpec
    ffn: HardwareSpec
    context: int  # mean of what a sequence holds while it decodes
    context_variance: float = 0.0  # of it: the busiest package of all sets the pace
    tpot_s: float = 0.05
    attention_formats: Formats
    ffn_formats: Formats
    gpus_attention: int = 8  # packages of an instance
    gpus_ffn: int = 8
    selective: bool = False  # send a token only to F peers that hold a chosen expert, not to all
    one_domain: bool = False  # A and F inside one scale-up domain instead of over NICs
    jitter_s: float = JITTER_S
    imbalance: float | None = None  # busiest F instance over the mean; None: of uniform random routing
    net_efficiency: float | None = None  # overrides the attained share of the link between A and F
    attention_shares: Efficiency | None = None  # of A's kernels; None: the cost model's for that hardware
    ffn_shares: Efficiency | None = None
    memory_share: float = MEMORY_SHARE
    runtime_bytes: float = RUNTIME_BYTES
    measured: Measured = MODELLED


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """N_A attention and N_F FFN instances with m micro-batches, `per_gpu` sequences of each on an attention package."""

    num_attention: int
    num_ffn: int
    micro_batches: int
    per_gpu: int
    batch: int
    packages: int
    tpot_s: float
    stages: tuple[Stages, ...]  # one a layer group
    layer_counts: tuple[int, ...]
    limited_by: str  # what keeps the batch from growing: tpot | kv memory | the planner's bound
    attention_link_s: float  # both legs at each end, per layer, expert layers
    ffn_link_s: float
    usd_per_mtok: float

    @property
    def tokens_per_s(self) -> float:
        return self.batch / self.tpot_s

    @property
    def tgs(self) -> float:
        """Tokens a second and package."""
        return self.tokens_per_s / self.packages

    @property
    def name(self) -> str:
        return f"{self.num_attention}A{self.num_ffn}F"

    @property
    def main_stages(self) -> Stages:
        """Of the commonest kind of layer."""
        return self.stages[int(np.argmax(self.layer_counts))]

    @property
    def bottleneck(self) -> str:
        """The busiest resource of the expert layers, or `latency` where the sum of all binds."""
        main = self.main_stages
        return main.bottleneck if self.micro_batches * main.slowest_s >= main.total_s else "latency"


def problem(
    model: ModelShape,
    attention: HardwareSpec,
    ffn: HardwareSpec,
    context: int,
    *,
    tpot_s: float = 0.05,
    kv: str = "fp8",
    weights: str | None = None,
    selective: bool = False,
    one_domain: bool = False,
    gpus_attention: int | None = None,
    gpus_ffn: int | None = None,
    imbalance: float | None = None,
    fused: bool = False,
    measured: Measured = MODELLED,
    context_variance: float = 0.0,
    attention_dtype: str = "bf16",
) -> AfdProblem:
    """With the formats that each side's hardware computes in, and its node as the instance.

    Raises RequestError for a model without experts, a card without a link, or an SLO that is no time.
    """
    if model.moe is None:
        raise RequestError(
            f"model: {model.name} has no experts; AFD separates attention from experts, see `plan cost` for dense models",
            param="model",
        )
    if not 0 < tpot_s < 10:
        raise RequestError(f"tpot must be between 0 and 10 s, not {tpot_s:g}", param="tpot")
    if not one_domain:
        for device in (attention, ffn):
            device.link("scale_out")
    return AfdProblem(
        model=model,
        attention=attention,
        ffn=ffn,
        context=context,
        context_variance=context_variance,
        tpot_s=tpot_s,
        attention_formats=formats_for(attention, weights, kv, attention_dtype),
        ffn_formats=formats_for(ffn, weights, kv),
        gpus_attention=gpus_attention or attention.packages_per_node,
        gpus_ffn=gpus_ffn or ffn.packages_per_node,
        selective=selective,
        one_domain=one_domain,
        imbalance=imbalance,
        attention_shares=fused_kernels(attention) if fused else None,
        ffn_shares=fused_kernels(ffn) if fused else None,
        measured=measured,
    )


def fused_kernels(device: HardwareSpec) -> Efficiency:
    """One kernel a layer instead of one an operator: launches all but vanish and weights stream at 0.85 of bandwidth.
    FastAFD credits it with 42 to 44 % of its step."""
    return msgspec.structs.replace(
        efficiency(device.architecture),
        launch_s=0.5e-6,
        attention_launch_s=3e-6,
        experts_launch_s=5e-6,
        gemm_memory=0.85,
        experts_memory=0.85,
        quantise_s=0.0,
        elementwise_memory=0.85,
        source="one fused kernel a layer, as FastAFD; assumed, not measured here",
    )


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one package on each side."""

    attention_weights: float
    kv_room: float
    kv_per_sequence: float
    ffn_weights: float  # of all F packages together
    ffn_room: float  # of one package, for weights

    @property
    def sequences_per_gpu(self) -> int:
        return int(self.kv_room // self.kv_per_sequence) if self.kv_room > 0 else 0


def memory(p: AfdProblem) -> Memory:
    """Attention packages hold attention, embeddings and KV; expert weights are gone from them."""
    model = p.model
    embeddings = 2.0 * (1 if model.tie_embeddings else 2) * model.vocab_size * model.hidden_size
    weights = attention_parameters(model) * dtype_bytes(p.attention_formats.weights) + embeddings
    return Memory(
        attention_weights=weights,
        kv_room=p.memory_share * p.attention.memory_bytes - p.runtime_bytes - weights,
        kv_per_sequence=float(kv_cache_bytes(model, p.context, p.attention_formats.kv)),
        ffn_weights=ffn_parameters(model) * dtype_bytes(p.ffn_formats.expert_weights),
        ffn_room=p.memory_share * p.ffn.memory_bytes - p.runtime_bytes,
    )


def least_ffn_instances(p: AfdProblem) -> int:
    """Whole F instances that hold all FFN weights. Raises RequestError where attention weights do not fit A."""
    held = memory(p)
    if held.sequences_per_gpu < 1:
        raise RequestError(
            f"context: one sequence of {p.context} tokens needs {held.kv_per_sequence / 1e9:.1f} GB beside "
            f"{held.attention_weights / 1e9:.1f} GB of weights on {p.attention.name}; nearest feasible is "
            f"{max(0, int(held.kv_room / held.kv_per_sequence * p.context)):,} tokens",
            param="context",
        )
    return max(1, int(np.ceil(held.ffn_weights / (held.ffn_room * p.gpus_ffn))))


def net(p: AfdProblem, device: HardwareSpec, gpus: int) -> float:
    """Attained bytes/s of an instance on the link between A and F, one direction."""
    link = device.link("domain" if p.one_domain else "scale_out")
    share = p.net_efficiency if p.net_efficiency is not None else Links(device).attained(link)
    return link.bytes_per_s * share * gpus


def candidate(
    p: AfdProblem, num_attention: int, num_ffn: int, micro_batches: int, per_gpu: int | None = None
) -> Candidate:
    """The plan at `per_gpu` sequences a package and micro-batch, or at the most that TPOT and memory allow.

    Raises RequestError with the nearest feasible TPOT where not even one sequence meets it, or where weights do not fit.
    """
    _check(num_attention, num_ffn, micro_batches)
    least = least_ffn_instances(p)
    if num_ffn < least:
        raise RequestError(
            f"num_ffn: {num_ffn} F instances of {p.gpus_ffn} {p.ffn.name} do not hold the experts; nearest feasible is "
            f"{least}",
            param="num_ffn",
        )
    held = memory(p)
    room = held.sequences_per_gpu // micro_batches
    if room < (per_gpu or 1):
        raise RequestError(
            f"context: KV of {micro_batches} micro-batches of {per_gpu or 1} sequences does not fit {p.attention.name}; "
            f"nearest feasible is {room} a micro-batch",
            param="context",
        )
    sizes = (
        np.arange(1.0, min(room, MAX_PER_GPU) + 1)
        if per_gpu is None
        else np.asarray([per_gpu], dtype=np.float64)
    )
    grid = _Grid(p, num_attention, num_ffn, sizes)
    seconds = grid.iteration_s(micro_batches)
    index = 0
    limited = "given"
    if per_gpu is None:
        good = np.flatnonzero(seconds <= p.tpot_s)
        if not len(good):
            raise RequestError(
                f"tpot: {num_attention}A{num_ffn}F does not meet {p.tpot_s * 1e3:g} ms; nearest feasible is "
                f"{seconds.min() * 1e3:.1f} ms",
                param="tpot",
            )
        index = int(good[-1])
        limited = (
            "tpot" if index + 1 < len(sizes) else "kv memory" if len(sizes) == room else "the planner's bound"
        )
    return grid.candidate(index, micro_batches, float(seconds[index]), limited)


def _check(num_attention: int, num_ffn: int, micro_batches: int) -> None:
    for name, value, most in (
        ("num_attention", num_attention, MAX_INSTANCES),
        ("num_ffn", num_ffn, MAX_INSTANCES),
        ("micro_batches", micro_batches, MAX_MICRO_BATCHES),
    ):
        if not 1 <= value <= most:
            raise RequestError(f"{name} must be 1 to {most}, not {value}", param=name)


def layer_stages(p: AfdProblem, num_attention: int, num_ffn: int, per_gpu: int) -> Stages:
    """Times of the model's commonest kind of layer, whatever the TPOT and the memory."""
    grid = _Grid(p, num_attention, num_ffn, np.asarray([per_gpu], dtype=np.float64))
    return grid.candidate(0, 1, 1.0, "given").main_stages


class _Grid:
    """Times of all batch sizes of one (N_A, N_F) at once."""

    def __init__(self, p: AfdProblem, num_attention: int, num_ffn: int, sizes: Times) -> None:
        self.p, self.num_attention, self.num_ffn, self.sizes = p, num_attention, num_ffn, sizes
        self.attention_kernels = p.measured.kernels(p.attention, shares=p.attention_shares)
        self.ffn_kernels = p.measured.kernels(p.ffn, shares=p.ffn_shares)
        self.groups = [self._resources(group) for group in p.model.groups]
        rows = self.attention_kernels.gemm(sizes, p.model.vocab_size, p.model.hidden_size, "bf16")
        self.head_s = np.asarray(rows) * np.ones(len(sizes))

    def iteration_s(self, m: int) -> Times:
        """Steady periods of all layers, the drain of the last micro-batches, the head of each, and jitter."""
        total = np.zeros(len(self.sizes))
        drain = np.zeros(len(self.sizes))
        for group, times in zip(self.p.model.groups, self.groups, strict=True):
            slowest, whole = times.max(axis=0), times.sum(axis=0)
            total += group.count * np.maximum(m * slowest, whole)
            drain = np.maximum(
                drain, np.minimum((m - 1) * slowest, np.maximum(whole - slowest, (m - 1) * slowest))
            )
        return total + drain + m * self.head_s + self.p.jitter_s

    def candidate(self, index: int, m: int, seconds: float, limited: str) -> Candidate:
        p = self.p
        per_gpu = int(self.sizes[index])
        packages = self.num_attention * p.gpus_attention + self.num_ffn * p.gpus_ffn
        batch = m * per_gpu * p.gpus_attention * self.num_attention
        stages = tuple(
            Stages(**{f"{name}_s": float(times[i, index]) for i, name in enumerate(RESOURCES)})
            for times in self.groups
        )
        experts = next(i for i, g in enumerate(p.model.groups) if g.ffn.is_moe)
        at_a, at_f = self._ends(p.model.groups[experts])
        return Candidate(
            num_attention=self.num_attention,
            num_ffn=self.num_ffn,
            micro_batches=m,
            per_gpu=per_gpu,
            batch=batch,
            packages=packages,
            tpot_s=seconds,
            stages=stages,
            layer_counts=tuple(group.count for group in p.model.groups),
            limited_by=limited,
            attention_link_s=float(at_a[index]),
            ffn_link_s=float(at_f[index]),
            usd_per_mtok=_usd(p, self.num_attention, self.num_ffn, batch / seconds),
        )

    def _resources(self, group: LayerGroup) -> Times:
        """(resource, size) seconds of one micro-batch in one layer of the group."""
        p, hidden = self.p, self.p.model.hidden_size
        tokens = self.sizes * p.gpus_attention * self.num_attention  # of one micro-batch, all A together
        attention = attention_side(
            p.model,
            self.attention_kernels,
            group.attention,
            batch=self.sizes,
            context=self._busiest_context(),
            formats=p.attention_formats,
        )
        ffn = ffn_side(
            p.model,
            self.ffn_kernels,
            group.ffn,
            tokens=tokens,
            ep=self._ep(group),
            tp=self._tp(group),
            formats=p.ffn_formats,
            imbalance=self._uneven(group, tokens),
        )
        heard = tokens * self._share(group)  # tokens that one F instance hears
        out, back = dtype_bytes(p.ffn_formats.wire_out), dtype_bytes(p.ffn_formats.wire_back)
        leg_a, leg_f = self._leg(group)
        a2f, gather = self._chunked(
            np.maximum(leg_a, leg_f) * out + self._latency(), self._inside(heard * hidden * out)
        )
        f2a, scatter = self._chunked(
            np.maximum(leg_a, leg_f) * back + self._latency(), self._inside(heard * hidden * back)
        )
        # Step-3 routes on the attention side, so that tokens travel with their choice.
        router = ffn.parts.get("ffn.router", 0.0)
        routed = (
            self.attention_kernels.gemm(self.sizes, group.ffn.num_experts, hidden, "bf16")
            if group.ffn.is_moe
            else 0.0
        )
        rows = [
            attention.total_s + routed,
            a2f,
            gather,
            ffn.total_s - router,
            scatter,
            f2a,
        ]
        return np.stack([np.broadcast_to(np.asarray(row, dtype=float), self.sizes.shape) for row in rows])

    def _chunked(self, across: Times, inside: Times) -> tuple[Times, Times]:
        """Tokens of one A instance are a message of their own: while the next is on the NICs the last is gathered (or
        sent back while the next is reduced). With two buffers the shorter of both times shows by half."""
        n = min(self.num_attention, 2)
        return np.where(across >= inside, across, across / n), np.where(inside > across, inside, inside / n)

    def _busiest_context(self) -> Times | float:
        """Mean context of the package whose sequences are longest: all wait for it in each layer (A/F ratio)."""
        if not self.p.context_variance:
            return float(self.p.context)
        spread = expected_max_of_normals(self.num_attention * self.p.gpus_attention)
        return self.p.context + spread * np.sqrt(self.p.context_variance / self.sizes)

    def _ep(self, group: LayerGroup) -> int:
        return self.num_ffn if group.ffn.is_moe else 1

    def _tp(self, group: LayerGroup) -> int:
        return self.p.gpus_ffn if group.ffn.is_moe else self.p.gpus_ffn * self.num_ffn

    def _uneven(self, group: LayerGroup, tokens: Times) -> Times | float:
        if self.p.imbalance is not None or not group.ffn.is_moe:
            return self.p.imbalance or 1.0
        return expected_imbalance(tokens, group.ffn.top_k, self.num_ffn)

    def _share(self, group: LayerGroup) -> float:
        if not (self.p.selective and group.ffn.is_moe):
            return 1.0
        return send_probability(
            group.ffn.num_experts, min(self.num_ffn, group.ffn.num_experts), group.ffn.top_k
        )

    def _leg(self, group: LayerGroup) -> tuple[Times, Times]:
        """Seconds a byte-per-element on each end of the link, for one element a feature."""
        p = self.p
        per_instance = self.sizes * p.gpus_attention * p.model.hidden_size * self._share(group)
        return (
            per_instance * self.num_ffn / net(p, p.attention, p.gpus_attention),
            per_instance * self.num_attention / net(p, p.ffn, p.gpus_ffn),
        )

    def _ends(self, group: LayerGroup) -> tuple[Times, Times]:
        wire = dtype_bytes(self.p.ffn_formats.wire_out) + dtype_bytes(self.p.ffn_formats.wire_back)
        leg_a, leg_f = self._leg(group)
        return leg_a * wire, leg_f * wire

    def _latency(self) -> float:
        """One message of the link: peers are written to at once."""
        tier: TierName = "domain" if self.p.one_domain else "scale_out"
        return max(self.p.attention.link(tier).latency_s, self.p.ffn.link(tier).latency_s)

    def _inside(self, num_bytes: Times) -> Times:
        """All-gather of tokens or reduce-scatter of outputs over an instance's packages."""
        p = self.p
        if p.gpus_ffn == 1:
            return np.zeros(len(self.sizes))
        near = p.ffn.reach(p.gpus_ffn)
        rate = near.bytes_per_s * NVLS_SHARE
        return near.latency_s + (p.gpus_ffn - 1) / p.gpus_ffn * num_bytes / rate


def _usd(p: AfdProblem, num_attention: int, num_ffn: int, tokens_per_s: float) -> float:
    if p.attention.price is None or p.ffn.price is None:
        return float("inf")
    second = (
        num_attention * p.gpus_attention * p.attention.usd_per_second
        + num_ffn * p.gpus_ffn * p.ffn.usd_per_second
    )
    return 1e6 * second / tokens_per_s


def search(
    p: AfdProblem,
    *,
    max_packages: int = 320,
    micro_batches: Sequence[int] = (2, 3, 4),
    max_attention: int = 48,
) -> list[Candidate]:
    """All whole-instance plans that meet the SLO, cheapest first (without prices: most tokens a package first).

    Raises RequestError with the binding constraint and the nearest feasible value where there is none.
    """
    for m in micro_batches:
        _check(1, 1, m)
    least = least_ffn_instances(p)
    need = least * p.gpus_ffn + p.gpus_attention
    if need > max_packages:
        raise RequestError(
            f"max_packages: {p.model.name} needs {least} F instances and one A, {need} packages; nearest feasible is {need}",
            param="max_packages",
        )
    found = list(_all(p, least, max_packages, micro_batches, max_attention))
    if not found:
        # Raises with the nearest TPOT of the smallest plan.
        candidate(p, 1, least, max(micro_batches))
    return sorted(found, key=_order)


def best_of_layout(
    p: AfdProblem, num_attention: int, num_ffn: int, micro_batches: Sequence[int] = (2, 3, 4)
) -> list[Candidate]:
    """One layout with each number of micro-batches that meets the SLO, best first. Raises as `candidate` does where
    none does."""
    found, reason = [], None
    for m in micro_batches:
        try:
            found.append(candidate(p, num_attention, num_ffn, m))
        except RequestError as error:
            reason = error
    if reason is not None and not found:
        raise reason
    return sorted(found, key=_order)


def _order(c: Candidate) -> float:
    """Cheapest first; without prices most tokens a package first."""
    return c.usd_per_mtok if math.isfinite(c.usd_per_mtok) else -c.tgs


def _all(
    p: AfdProblem, least: int, max_packages: int, micro_batches: Sequence[int], max_attention: int
) -> Iterator[Candidate]:
    held = memory(p)
    experts = p.model.moe.num_experts if p.model.moe else 1
    for num_ffn in range(least, max_packages // p.gpus_ffn + 1):
        if num_ffn > experts or (num_ffn > 4 and experts % num_ffn):
            continue  # beyond four, only counts that divide the experts
        room_a = (max_packages - num_ffn * p.gpus_ffn) // p.gpus_attention
        for num_attention in range(1, min(room_a, max_attention) + 1):
            widest = held.sequences_per_gpu // min(micro_batches)
            grid = _Grid(p, num_attention, num_ffn, np.arange(1.0, min(widest, MAX_PER_GPU) + 1))
            for m in micro_batches:
                room = min(held.sequences_per_gpu // m, MAX_PER_GPU)
                seconds = grid.iteration_s(m)[:room]
                good = np.flatnonzero(seconds <= p.tpot_s)
                if len(good):
                    index = int(good[-1])
                    limited = (
                        "tpot"
                        if index + 1 < room
                        else "kv memory"
                        if room < MAX_PER_GPU
                        else "the planner's bound"
                    )
                    yield grid.candidate(index, m, float(seconds[index]), limited)


def imbalance_assumed(imbalance: float | None) -> Assumption:
    """How uneven experts are taken to be loaded."""
    if imbalance is not None:
        return Assumption("expert imbalance", f"{imbalance:g}", "busiest group over the mean, given")
    return Assumption(
        "expert imbalance",
        "of uniform random routing, by batch and group size",
        "a real router is worse: measure it and give --imbalance",
    )


def assumptions(p: AfdProblem) -> tuple[Assumption, ...]:
    """What the plan rests on beside the kernels."""
    listed = [
        Assumption("jitter", f"{p.jitter_s * 1e3:g} ms a token", "StepMesh, minimum against mean TPOT"),
        Assumption("memory", f"{p.memory_share:g} of a package", "fragmentation"),
        Assumption("gather and scatter", f"{NVLS_SHARE:g} of the node's link", "NCCL on H100"),
        Assumption(
            "formats",
            f"A {p.attention_formats.weights}, attention in {p.attention_formats.attention}, KV {p.attention_formats.kv}, "
            f"F {p.ffn_formats.weights}",
            "8 bit where the card has it",
        ),
        imbalance_assumed(p.imbalance),
    ]
    tier: TierName = "domain" if p.one_domain else "scale_out"
    for device in {p.attention.name: p.attention, p.ffn.name: p.ffn}.values():
        link = device.link(tier)
        share = p.net_efficiency if p.net_efficiency is not None else Links(device).attained(link)
        listed.append(
            Assumption(
                f"{device.name} {tier}",
                f"{share:g} of {link.bytes_per_s / 1e9:g} GB/s",
                "attained, large messages",
            )
        )
    sides = ((p.attention, p.attention_shares), (p.ffn, p.ffn_shares))
    kernels = (p.measured.kernels(device, shares=shares) for device, shares in sides)
    return (*listed, *(a for each in kernels for a in each.assumptions()))
