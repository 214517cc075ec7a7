"""Every way to lay one model on one kind of hardware, priced at once: the table that the best colocated plan is read from.

A candidate is hardware x weight format x (tp, dp, ep, pp) x batch. All candidates of a hardware and a format are arrays
of one call to the cost model.
"""

from collections.abc import Iterable, Sequence
from itertools import product

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.cost import (
    Assumption,
    Formats,
    Kernels,
    Layout,
    decode_step,
    layout_fits,
    max_batch,
    usd_per_mtok,
)
from mortice.cost.accounting import Number
from mortice.plan.af_ratio import expected_max_of_normals
from mortice.plan.exchange import expected_imbalance
from mortice.plan.measured import MODELLED, Measured
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape

TP = (1, 2, 4, 8, 16)
DP = (1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 36, 40, 48, 64, 72, 96, 128, 144, 160, 256, 320)
PP = (1, 2, 3, 4, 6, 8)
BATCHES = (
    1,
    2,
    4,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
    320,
    384,
    448,
    512,
    768,
    1024,
)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One layout at one batch, decode only."""

    hardware: str
    weights: str
    tp: int
    dp: int
    ep: int
    pp: int
    packages: int
    batch: int  # sequences of the instance
    tpot_s: float
    tokens_per_s_per_package: float
    usd_per_mtok: float


def with_jitter(c: Candidate, jitter_s: float) -> Candidate:
    """The same plan with `jitter_s` of stragglers on each token, as AFD plans carry it: so that both are judged alike."""
    slower = (c.tpot_s + jitter_s) / c.tpot_s
    return msgspec.structs.replace(
        c,
        tpot_s=c.tpot_s + jitter_s,
        tokens_per_s_per_package=c.tokens_per_s_per_package / slower,
        usd_per_mtok=c.usd_per_mtok * slower,
    )


class PlacementTable(msgspec.Struct, frozen=True, kw_only=True):
    """All candidates as columns, in no order; `fits` says which hold the model and the batch."""

    hardware: NDArray[np.int64]  # index into `names`
    weights: NDArray[np.int64]  # index into `formats`
    tp: NDArray[np.float64]
    dp: NDArray[np.float64]
    ep: NDArray[np.float64]
    pp: NDArray[np.float64]
    batch: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    usd: NDArray[np.float64]
    fits: NDArray[np.bool_]
    names: tuple[str, ...]
    formats: tuple[str, ...]
    assumed: tuple[Assumption, ...]

    def __len__(self) -> int:
        return len(self.tp)

    def candidate(self, i: int) -> Candidate:
        packages = int(self.tp[i] * self.dp[i] * self.pp[i])
        return Candidate(
            hardware=self.names[self.hardware[i]],
            weights=self.formats[self.weights[i]],
            tp=int(self.tp[i]),
            dp=int(self.dp[i]),
            ep=int(self.ep[i]),
            pp=int(self.pp[i]),
            packages=packages,
            batch=int(self.batch[i]),
            tpot_s=float(self.tpot_s[i]),
            tokens_per_s_per_package=float(self.batch[i] / self.tpot_s[i] / packages),
            usd_per_mtok=float(self.usd[i]),
        )

    def fastest(self, tpot_s: float, jitter_s: float = 0.0) -> Candidate:
        """The most tokens a package that meet the TPOT, price or no price. Raises as `best` does."""
        good = self._good(tpot_s, jitter_s)
        rate = self.batch[good] / self.tpot_s[good] / (self.tp[good] * self.dp[good] * self.pp[good])
        return with_jitter(self.candidate(int(good[np.argmax(rate)])), jitter_s)

    def best(self, tpot_s: float, count: int = 1, jitter_s: float = 0.0) -> list[Candidate]:
        """The cheapest that meet the TPOT with `jitter_s` of stragglers on each token, at most one a hardware and layout.
        Raises RequestError naming what binds and the nearest feasible value."""
        order = self._good(tpot_s, jitter_s)
        order = order[np.argsort(self.usd[order], kind="stable")]
        found: dict[tuple[int, ...], Candidate] = {}
        for i in order:
            key = tuple(
                int(column[i]) for column in (self.hardware, self.weights, self.tp, self.dp, self.ep, self.pp)
            )
            if key not in found:
                found[key] = with_jitter(self.candidate(int(i)), jitter_s)
                if len(found) == count:
                    break
        return list(found.values())

    def _good(self, tpot_s: float, jitter_s: float) -> NDArray[np.int64]:
        if not self.fits.any():
            raise RequestError(
                "model: no placement holds it on the given hardware, not even one sequence; give more packages "
                "(max_packages), a smaller weight dtype, or hardware with more memory",
                param="model",
            )
        good = self.fits & (self.tpot_s + jitter_s <= tpot_s)
        if not good.any():
            nearest = float(self.tpot_s[self.fits].min()) + jitter_s
            raise RequestError(
                f"tpot: nothing meets {tpot_s * 1e3:g} ms; nearest feasible is {nearest * 1e3:.1f} ms",
                param="tpot",
            )
        return np.flatnonzero(good)


def formats_for(
    device: HardwareSpec, weights: str | None = None, kv: str = "fp8", attention: str = "bf16"
) -> Formats:
    """8-bit weights and KV where the card computes in 8 bit, else 16 bit; attention in BF16, or in `attention` where the
    card computes in it."""
    if weights is None:
        weights = next((name for name in ("fp8", "int8") if name in device.peaks), "bf16")
    wire = "fp8" if weights in ("fp8", "int8", "fp8_block") else "bf16"
    return Formats(
        weights=weights, kv=kv, wire_out=wire, attention=attention if attention in device.peaks else "bf16"
    )


def placement_table(
    model: ModelShape,
    devices: Sequence[HardwareSpec],
    context: int,
    *,
    weights: Iterable[str | None] = (None,),
    kv: str = "fp8",
    max_packages: int = 320,
    imbalance: float | None = None,
    framework: str = "",
    measured: Measured = MODELLED,
    context_variance: float = 0.0,
    attention: str = "bf16",
) -> PlacementTable:
    """Price every candidate. A device without a price has no USD (infinite) but a time.

    `imbalance`: busiest expert group over the mean; None: of uniform random routing by batch and group size.
    `context_variance`: of the context of a sequence; replicas that share experts wait for the one with the longest.
    """
    columns: list[dict[str, NDArray]] = []
    assumed: dict[Assumption, None] = {}
    chosen: list[str] = []
    for index, device in enumerate(devices):
        kernels = measured.kernels(device, framework=framework)
        for wanted in weights:
            formats = formats_for(device, wanted, kv, attention)
            if not _computes(kernels, formats):
                continue
            if formats.weights not in chosen:
                chosen.append(formats.weights)
            part = _of_device(
                model, device, kernels, context, context_variance, formats, max_packages, imbalance, assumed
            )
            size = len(part["tp"])
            part["hardware"] = np.full(size, index)
            part["weights"] = np.full(size, chosen.index(formats.weights))
            columns.append(part)
    if not columns:
        raise RequestError("hardware: none of the given computes in the asked weight dtype", param="weights")
    merged = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    return PlacementTable(
        **merged, names=tuple(d.name for d in devices), formats=tuple(chosen), assumed=tuple(assumed)
    )


def _computes(kernels: Kernels, formats: Formats) -> bool:
    try:
        for dtype in {formats.weights, formats.expert_weights, formats.attention, "bf16"}:
            kernels.peak(dtype)
    except RequestError:
        return False  # this card lacks that arithmetic: it has no candidates in this format
    return True


def _of_device(
    model: ModelShape,
    device: HardwareSpec,
    kernels: Kernels,
    context: int,
    context_variance: float,
    formats: Formats,
    max_packages: int,
    imbalance: float | None,
    assumed: dict[Assumption, None],
) -> dict[str, NDArray]:
    tp, dp, ep, pp = _layouts(model, device, max_packages)
    layout = Layout(tp=tp, dp=dp, ep=ep, pp=pp)
    keep = layout_fits(model, layout)
    tp, dp, ep, pp = tp[keep], dp[keep], ep[keep], pp[keep]
    # Batches grow with the instance: BATCHES is a replica's (one dp rank of one pipeline stage's share).
    rows = len(tp)
    per_rank = np.tile(np.asarray(BATCHES, dtype=np.float64), rows)
    tp, dp, ep, pp = (np.repeat(column, len(BATCHES)) for column in (tp, dp, ep, pp))
    layout = Layout(tp=tp, dp=dp, ep=ep, pp=pp)
    batch = per_rank * dp * pp
    uneven: Number = 1.0 if imbalance is None else imbalance
    if imbalance is None and model.moe is not None:
        uneven = expected_imbalance(batch / pp, model.moe.top_k, ep)
    longest = _busiest_context(model, context, context_variance, dp, per_rank)
    step = decode_step(model, kernels, layout, batch, longest, formats=formats, imbalance=uneven)
    assumed.update(dict.fromkeys(step.assumed))
    seconds = np.broadcast_to(np.asarray(step.total_s, dtype=float), batch.shape)
    room = np.asarray(max_batch(model, device, layout, context, formats))
    packages = tp * dp * pp
    if device.price is not None:
        usd = np.asarray(usd_per_mtok(device, packages, batch, seconds))
    else:
        usd = np.full(batch.shape, np.inf)
    return {
        "tp": tp,
        "dp": dp,
        "ep": ep,
        "pp": pp,
        "batch": batch,
        "tpot_s": seconds,
        "usd": usd,
        "fits": batch <= room,
    }


def _busiest_context(
    model: ModelShape, context: int, variance: float, dp: NDArray[np.float64], per_rank: NDArray[np.float64]
) -> Number:
    """Mean context of the replica whose sequences are longest; replicas of a dense model do not wait for each other."""
    if not variance or model.moe is None:
        return float(context)
    spread = {n: expected_max_of_normals(int(n)) for n in set(dp)}
    return context + np.array([spread[n] for n in dp]) * np.sqrt(variance / per_rank)


def _layouts(model: ModelShape, device: HardwareSpec, max_packages: int) -> tuple[NDArray[np.float64], ...]:
    near = max([device.packages_per_node, *(link.span for link in device.links if link.tier == "domain")])
    rows = []
    for tp, dp, pp in product(TP, DP, PP):
        packages = tp * dp * pp
        if packages > max_packages or tp > near or (packages > near and not device.has_link("scale_out")):
            continue
        if packages > 1 and not any(link.tier in ("node", "domain", "scale_out") for link in device.links):
            continue
        stage = tp * dp
        groups = {1, tp, stage, max(1, stage // 2), max(1, stage // 4)} if model.moe_layers else {1}
        rows += [(tp, dp, ep, pp) for ep in sorted(groups)]
    columns = np.asarray(rows or [(1, 1, 1, 1)], dtype=np.float64)
    return tuple(columns[:, i] for i in range(4))
