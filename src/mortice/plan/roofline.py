"""`plan roofline`: the intensity of attention designs against the corner of each hardware's roofline."""

from collections.abc import Sequence

import msgspec
import numpy as np

from mortice.cost import Convention, arithmetic_intensity, dtype_bytes, effective_rank
from mortice.cost.published import cost_dtype
from mortice.plan.answer import Answer, Assumed, Bars, Column, Lines, Mark, Series, Table
from mortice.plan.inputs import device_assumptions, model_assumptions
from mortice.plan.words import tokens as token_words
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape

KV_DTYPES = ("bf16", "fp8", "int4")


def roofline_question(
    shapes: Sequence[ModelShape],
    devices: Sequence[HardwareSpec],
    context: int,
    rule: Convention,
    *,
    kv_dtype: str = "fp8",
) -> Answer:
    """Which attention waits for memory where, at 16, 8 and 4 bit of KV, and how much of the peak it reaches."""
    dtype_bytes(kv_dtype)
    rows = [_row(m, d, context, rule, kv_dtype) for m in shapes for d in devices]
    ridges = {d.name: d.ridge(cost_dtype(d)) for d in devices}
    table = Table(
        title=f"Attention at {token_words(context)} context",
        columns=(
            Column("model", "model"),
            Column("attention", "attention"),
            Column("effective_rank", "rank", "count"),
            Column("hardware", "hardware"),
            Column("ridge", "ridge", "number"),
            *(Column(f"intensity_{name}", f"FLOP/B {name}", "number") for name in KV_DTYPES),
            Column("padded_intensity", "in tiles", "number"),
            Column("bound", "waits for"),
            Column("useful_share", "useful peak", "percent"),
        ),
        rows=tuple(rows),
    )
    return Answer(
        verb="roofline",
        title="Attention designs against hardware ridge points",
        verdict=_verdict(rows),
        tables=(table,),
        charts=_charts(rows, devices, ridges, kv_dtype),
        assumed=(
            Assumed("kv dtype", kv_dtype, "of the column that bounds are told from"),
            Assumed(
                "arithmetic", "fp8 where the card has it, else bf16", "the peak that the ridge is made of"
            ),
            *device_assumptions(devices, prices=False),
            *model_assumptions(shapes),
        ),
        formulas=("roofline.intensity",),
        facts={"rows": rows, "ridges": ridges},
    )


def _row(model: ModelShape, device: HardwareSpec, context: int, rule: Convention, kv_dtype: str) -> dict:
    intensity = {
        f"intensity_{name}": float(arithmetic_intensity(model, context, name, _unpadded(rule)))
        for name in KV_DTYPES
    }
    nominal = float(arithmetic_intensity(model, context, kv_dtype, _unpadded(rule)))
    padded = float(arithmetic_intensity(model, context, kv_dtype, _padded(rule), device.tile_rows))
    ridge = device.ridge(cost_dtype(device))
    families = dict.fromkeys(
        f"{g.attention.family} {g.attention.kind}"
        if g.attention.kind not in ("full", "linear")
        else g.attention.family
        for g in model.groups
    )
    return {
        "model": model.name,
        "attention": " + ".join(families),
        "effective_rank": effective_rank(model),
        "hardware": device.name,
        "ridge": ridge,
        **intensity,
        "padded_intensity": padded,
        "bound": "arithmetic" if padded >= ridge else "memory",
        # Of the card's peak, what goes into products that are not padding.
        "useful_share": min(1.0, padded / ridge) * nominal / padded,
    }


def _padded(rule: Convention) -> Convention:
    return msgspec.structs.replace(rule, pad_tiles=True)


def _unpadded(rule: Convention) -> Convention:
    return msgspec.structs.replace(rule, pad_tiles=False)


def _verdict(rows: Sequence[dict]) -> str:
    wasted = [r for r in rows if r["useful_share"] < 0.25]
    matched = [r for r in rows if 0.5 <= r["padded_intensity"] / r["ridge"] <= 2]
    parts = []
    if matched:
        names = ", ".join(f"{r['model']} on {r['hardware']}" for r in matched[:4])
        parts.append(f"Within a factor of two of the ridge, so that neither half idles: {names}.")
    if wasted:
        parts.append(
            f"{len(wasted)} of {len(rows)} pairs leave three quarters of the arithmetic unused in attention."
        )
    return " ".join(parts) or "No pair is near its ridge, none wastes more than three quarters of its peak."


def _charts(
    rows: Sequence[dict], devices: Sequence[HardwareSpec], ridges: dict[str, float], kv_dtype: str
) -> tuple[Lines | Bars, ...]:
    far = max([2000.0, *(2 * r for r in ridges.values())])
    # The ridges themselves are among the points, so that each corner is drawn as one.
    xs = tuple(sorted({*(float(x) for x in np.geomspace(1, far, 60)), *ridges.values()}))
    roofs = tuple(
        Series(
            d.name,
            xs,
            tuple(min(d.peak(cost_dtype(d)), x * d.memory_bytes_per_s) / 1e12 for x in xs),
        )
        for d in devices
    )
    by_model = {r["model"]: r for r in reversed(rows)}
    marks = tuple(
        Mark(name, x=row[f"intensity_{kv_dtype}"] if f"intensity_{kv_dtype}" in row else row["intensity_fp8"])
        for name, row in sorted(by_model.items(), key=lambda item: item[1]["intensity_fp8"])
    )
    names = list(dict.fromkeys(r["model"] for r in rows))
    bars = Bars(
        title="FLOP a byte of KV, 8 bit, with the ridges of the hardware",
        x_label="FLOP/B",
        labels=tuple(names),
        parts=(("intensity at 8 bit", tuple(by_model[n]["intensity_fp8"] for n in names)),),
        marks=tuple(Mark(name, x=value) for name, value in ridges.items()),
    )
    lines = Lines(
        title="Rooflines, and where each model's decode attention meets them",
        x_label="FLOP a byte",
        y_label="TFLOP/s",
        series=roofs,
        marks=marks,
        log_x=True,
        log_y=True,
    )
    return (lines, bars) if len(names) > 1 else (lines,)
