"""`plan kv`: how much fits, how long it takes to move, and from which bandwidth fetching beats computing."""

from collections.abc import Sequence

import msgspec
import numpy as np

from mortice.cost import Formats, Layout, Links, kv_cache_bytes, layout_fits, max_batch, prefill_step
from mortice.plan.answer import Answer, Assumed, Column, Lines, Mark, Series, Table
from mortice.plan.inputs import device_assumptions, model_assumptions
from mortice.plan.measured import MODELLED, Measured
from mortice.plan.placement import formats_for
from mortice.plan.words import scaled
from mortice.plan.words import tokens as token_words
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape

TENSOR = (1, 2, 4, 8, 16)
KV_DTYPES = ("bf16", "fp8", "fp4")


def transfer_s(num_bytes: float, bandwidth: float, latency_s: float, shared_by: int = 1) -> float:
    """latency + bytes / bandwidth; `shared_by` transfers at once share the link fairly."""
    if not bandwidth > 0:
        raise RequestError(f"bandwidth must be above 0 bytes a second, not {bandwidth:g}", param="bandwidth")
    return latency_s + num_bytes * shared_by / bandwidth


def smallest_layout(model: ModelShape, device: HardwareSpec, context: int, formats: Formats) -> Layout:
    """Fewest packages of tensor parallelism that hold the weights and one sequence.

    Raises RequestError naming the binding memory and the nearest feasible value.
    """
    room = {}
    for tp in TENSOR:
        layout = Layout(tp=tp)
        if tp > 1 and not any(link.tier in ("node", "domain", "scale_out") for link in device.links):
            break
        if not bool(layout_fits(model, layout)):
            continue
        if float(max_batch(model, device, layout, context, formats)) >= 1:
            return layout
        room[tp] = float(max_batch(model, device, layout, 1, formats))
    held = {tp: tokens for tp, tokens in room.items() if tokens >= 1}
    if held:
        tp, most = max(held.items(), key=lambda item: item[1])
        raise RequestError(
            f"context: KV of {context:,} tokens does not fit beside the weights; nearest feasible is about "
            f"{int(most):,} tokens with tp {tp} on {device.name}",
            param="context",
        )
    need = float(kv_cache_bytes(model, context, formats.kv)) / 1e9
    raise RequestError(
        f"model: weights of {model.name} in {formats.weights} do not fit {max(room, default=1)} x {device.name} "
        f"({device.memory_bytes / 1e9:.0f} GB each; {need:.1f} GB of KV besides); use more packages with experts spread "
        "(`plan afd`, `plan ep`) or a smaller dtype",
        param="model",
    )


class Reuse(msgspec.Struct, frozen=True, kw_only=True):
    """A cached prefix: fetch it or compute it again?"""

    prefix: int
    kv_bytes: float
    compute_s: float
    break_even_bytes_per_s: float  # fetching wins above it


def reuse(
    model: ModelShape,
    device: HardwareSpec,
    layout: Layout,
    prefix: int,
    formats: Formats,
    measured: Measured = MODELLED,
) -> Reuse:
    """Mooncake's condition (equation 2) with the model's own FLOPs, bytes and kernels."""
    compute = float(prefill_step(model, measured.kernels(device), layout, prefix, formats=formats).total_s)
    moved = float(kv_cache_bytes(model, prefix, formats.kv))
    return Reuse(prefix=prefix, kv_bytes=moved, compute_s=compute, break_even_bytes_per_s=moved / compute)


def kv_question(
    model: ModelShape,
    devices: Sequence[HardwareSpec],
    context: int,
    *,
    kv: str = "fp8",
    weights: str | None = None,
    measured: Measured = MODELLED,
) -> Answer:
    capacity, moves, reuses, skipped = [], [], [], []
    for device in devices:
        formats = formats_for(device, weights, kv)
        try:
            layout = smallest_layout(model, device, context, formats)
        except RequestError as error:
            if len(devices) == 1:
                raise
            skipped.append(f"{device.name}: {error.message}")
            continue
        capacity.append(_capacity(model, device, layout, context, formats))
        found = reuse(model, device, layout, context, formats, measured)
        reuses.append({"hardware": device.name, **msgspec.to_builtins(found)})
        moves += _moves(device, layout, found)
    if not capacity:
        raise RequestError("; ".join(skipped), param="model")
    per_token = {name: float(kv_cache_bytes(model, context, name)) / context for name in KV_DTYPES}
    return Answer(
        verb="kv",
        title=f"KV of {model.name} at {token_words(context)}",
        verdict=_verdict(capacity, moves, per_token[kv] if kv in per_token else per_token["fp8"]),
        tables=(
            _bytes_table(model, context),
            _capacity_table(capacity),
            _move_table(moves),
            _reuse_table(reuses),
        ),
        charts=(_chart(model, devices[0], formats_for(devices[0], weights, kv), context, moves, measured),),
        assumed=(
            Assumed("kv dtype", kv, "given or the default"),
            Assumed("instance", "fewest packages of tensor parallelism that hold the model", "one replica"),
            *measured.assumed(devices),
            *(Assumed(a.name, a.value, a.why) for d in devices for a in Links(d).assumptions()),
            *device_assumptions(devices, prices=False),
            *model_assumptions([model]),
        ),
        notes=(*measured.notes(devices), *skipped),
        formulas=("kv.transfer", "kv.reuse"),
        facts={"bytes_per_token": per_token, "capacity": capacity, "transfers": moves, "reuse": reuses},
    )


def _capacity(
    model: ModelShape, device: HardwareSpec, layout: Layout, context: int, formats: Formats
) -> dict:
    sequences = float(max_batch(model, device, layout, context, formats))
    packages = int(layout.packages)
    return {
        "hardware": device.name,
        "tp": packages,
        "weights": formats.weights,
        "sequences": int(sequences),
        "tokens": int(sequences * context),
        "sequences_per_package": sequences / packages,
    }


def _moves(device: HardwareSpec, layout: Layout, found: Reuse) -> list[dict]:
    links = Links(device)
    rows = []
    for link in device.links:
        if link.tier == "package":
            continue
        rate = link.bytes_per_s * links.attained(link) * int(layout.packages)
        rows.append(
            {
                "hardware": device.name,
                "tier": link.tier,
                "bytes_per_s": rate,
                "transfer_s": transfer_s(found.kv_bytes, rate, link.latency_s),
                "prefill_s": found.compute_s,
                "hidden": rate >= found.break_even_bytes_per_s,
                "share_of_prefill": found.kv_bytes / rate / found.compute_s,
            }
        )
    return rows


def _verdict(capacity: Sequence[dict], moves: Sequence[dict], per_token: float) -> str:
    most = max(capacity, key=lambda row: row["sequences_per_package"])
    slow = [f"{m['hardware']} {m['tier']}" for m in moves if not m["hidden"]]
    text = (
        f"{scaled(per_token, 'B')} a token. {most['hardware']} holds most: {most['sequences']} sequences on "
        f"{most['tp']} package{'s' if most['tp'] > 1 else ''}."
    )
    if not moves:
        return text + " The hardware names no link, so nothing can be handed over."
    if slow:
        return (
            text
            + f" Moving KV takes longer than computing it over {', '.join(slow)}: do not disaggregate across those."
        )
    return (
        text
        + " Every link here moves KV faster than prefill makes it, so a hand-over can hide behind prefill."
    )


def _bytes_table(model: ModelShape, context: int) -> Table:
    rows = tuple(
        {
            "dtype": name,
            "per_token": float(kv_cache_bytes(model, context, name)) / context,
            "sequence": float(kv_cache_bytes(model, context, name)),
            "million": float(kv_cache_bytes(model, 1_000_000, name)),
        }
        for name in KV_DTYPES
    )
    return Table(
        title="Bytes of KV, all layers",
        columns=(
            Column("dtype", "dtype"),
            Column("per_token", "a token", "bytes"),
            Column("sequence", f"{token_words(context)} tokens", "bytes"),
            Column("million", "1M tokens", "bytes"),
        ),
        rows=rows,
    )


def _capacity_table(rows: Sequence[dict]) -> Table:
    return Table(
        title="Capacity of one replica",
        columns=(
            Column("hardware", "hardware"),
            Column("tp", "packages", "count"),
            Column("weights", "weights"),
            Column("sequences", "sequences", "count"),
            Column("tokens", "tokens", "count"),
            Column("sequences_per_package", "sequences a package", "number"),
        ),
        rows=tuple(rows),
    )


def _move_table(rows: Sequence[dict]) -> Table:
    return Table(
        title="From prefill to decode",
        columns=(
            Column("hardware", "hardware"),
            Column("tier", "over"),
            Column("bytes_per_s", "at", "rate"),
            Column("transfer_s", "takes", "seconds"),
            Column("prefill_s", "prefill takes", "seconds"),
            Column("share_of_prefill", "share", "percent"),
            Column("hidden", "hides", "yes"),
        ),
        rows=tuple(rows),
    )


def _reuse_table(rows: Sequence[dict]) -> Table:
    return Table(
        title="Fetch a cached prefix or compute it again",
        columns=(
            Column("hardware", "hardware"),
            Column("prefix", "prefix", "count"),
            Column("kv_bytes", "KV", "bytes"),
            Column("compute_s", "compute", "seconds"),
            Column("break_even_bytes_per_s", "fetch from", "rate"),
        ),
        rows=tuple(rows),
    )


def _chart(
    model: ModelShape,
    device: HardwareSpec,
    formats: Formats,
    context: int,
    moves: Sequence[dict],
    measured: Measured,
) -> Lines:
    lens = [int(x) for x in np.geomspace(256, max(context, 65536), 24)]
    try:
        layout = smallest_layout(model, device, context, formats)
    except RequestError:
        layout = Layout()  # the table says that it does not fit; the curve is of one package
    rates = [reuse(model, device, layout, n, formats, measured).break_even_bytes_per_s / 1e9 for n in lens]
    marks = tuple(
        Mark(f"{m['hardware']} {m['tier']}", y=m["bytes_per_s"] / 1e9)
        for m in moves
        if m["hardware"] == device.name
    )
    return Lines(
        title=f"Bandwidth above which fetching a prefix beats computing it on {device.name}",
        x_label="prefix, tokens",
        y_label="GB/s",
        series=(Series("break even", tuple(map(float, lens)), tuple(rates)),),
        marks=marks,
        log_x=True,
        log_y=True,
    )
