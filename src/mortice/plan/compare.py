"""`plan compare`: two or more plans side by side, each told in a few characters.

h800            the best plan on H800 that keeps attention and experts together
h20/h800        the best plan with attention on H20 and experts on H800
h20/h800:6A2F   that many whole instances
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from mortice.cost import Formats, Kernels, Layout, prefill_step
from mortice.cost.step import usd_per_mtok
from mortice.plan import afd
from mortice.plan.answer import Answer, Assumed, Bars, Column, Table
from mortice.plan.inputs import device_assumptions, model_assumptions, priced
from mortice.plan.kv import smallest_layout
from mortice.plan.placement import formats_for, placement_table, with_jitter
from mortice.specs.catalogue import load_hardware
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape

PLAN = re.compile(r"(?P<attention>[^:]+?)(?:/(?P<ffn>[^/:]+))?(?::(?P<a>\d+)A(?P<f>\d+)F)?")


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One plan's figures; None where the plan cannot say."""

    plan: str
    layout: str
    packages: int
    batch: int
    tpot_s: float
    tokens_per_s_per_package: float
    usd_per_mtok: float | None
    prompt_usd_per_mtok: float | None  # prefill on the attention hardware


def read_plan(text: str) -> tuple[str, str | None, int | None, int | None]:
    """(attention hardware, FFN hardware, N_A, N_F) of a plan's text. A path with a slash must exist as a file."""
    if Path(text).is_file():
        return text, None, None, None
    match = PLAN.fullmatch(text.strip())
    if match is None or (match["a"] and not match["ffn"]):
        raise RequestError(f"plan must be HW, A/F or A/F:4A2F, got {text!r}", param="plan")
    counts = (int(match["a"]), int(match["f"])) if match["a"] else (None, None)
    return match["attention"], match["ffn"], *counts


def side(
    model: ModelShape, text: str, context: int, tpot_s: float, max_packages: int, prices: Mapping[str, float]
) -> Side:
    attention, ffn, num_a, num_f = read_plan(text)
    devices = {name: load_hardware(name) for name in {attention, ffn or attention}}
    used = {d.name for d in devices.values()}
    mine = {d.name: d for d in priced(devices.values(), {k: v for k, v in prices.items() if k in used})}
    a = mine[devices[attention].name]
    prompt = prompt_usd(model, a)
    if ffn is None:
        best = placement_table(model, [a], context, max_packages=max_packages).best(tpot_s - afd.JITTER_S)[0]
        best = with_jitter(best, afd.JITTER_S)
        return Side(
            plan=text,
            layout=f"tp{best.tp} dp{best.dp} ep{best.ep} pp{best.pp}",
            packages=best.packages,
            batch=best.batch,
            tpot_s=best.tpot_s,
            tokens_per_s_per_package=best.tokens_per_s_per_package,
            usd_per_mtok=best.usd_per_mtok if math.isfinite(best.usd_per_mtok) else None,
            prompt_usd_per_mtok=prompt,
        )
    p = afd.problem(model, a, mine[devices[ffn].name], context, tpot_s=tpot_s)
    if num_a is not None and num_f is not None:
        if num_a < 1 or num_f < 1:
            raise RequestError(f"plan: instances must be at least 1, got {text!r}", param="plan")
        found = min((afd.candidate(p, num_a, num_f, m) for m in (3,)), key=lambda c: c.usd_per_mtok)
    else:
        found = afd.search(p, max_packages=max_packages)[0]
    return Side(
        plan=text,
        layout=f"{found.name}, m {found.micro_batches}",
        packages=found.packages,
        batch=found.batch,
        tpot_s=found.tpot_s,
        tokens_per_s_per_package=found.tgs,
        usd_per_mtok=found.usd_per_mtok if math.isfinite(found.usd_per_mtok) else None,
        prompt_usd_per_mtok=prompt,
    )


def prompt_usd(model: ModelShape, device: HardwareSpec, tokens: int = 4096) -> float | None:
    """USD of 10^6 prompt tokens on the smallest instance that holds the model; None where none does or no price is known.

    Divided by the prefill packages alone, as decode is by its own.
    """
    if device.price is None:
        return None
    formats = formats_for(device)
    try:
        layout = smallest_layout(model, device, tokens, formats)
    except RequestError:
        layout = Layout(tp=8, ep=8) if model.moe_layers else Layout(tp=8)
        return None if device.packages_per_node < 8 else _prompt(model, device, layout, tokens, formats)
    return _prompt(model, device, layout, tokens, formats)


def _prompt(model: ModelShape, device: HardwareSpec, layout: Layout, tokens: int, formats: Formats) -> float:
    took = prefill_step(model, Kernels(device), layout, tokens, formats=formats).total_s
    return float(usd_per_mtok(device, layout.packages, tokens, took))


def compare_question(
    model: ModelShape,
    plans: Sequence[str],
    context: int,
    *,
    tpot_s: float = 0.05,
    max_packages: int = 128,
    prices: Mapping[str, float] | None = None,
) -> Answer:
    if len(plans) < 2:
        raise RequestError("plan: give two or more, --plan h800 --plan h20/h800", param="plan")
    sides = [side(model, text, context, tpot_s, max_packages, prices or {}) for text in plans]
    rows = tuple(msgspec.to_builtins(s) for s in sides)
    known = all(s.usd_per_mtok is not None for s in sides)
    best = min(range(len(sides)), key=lambda i: _key(sides[i], known))
    devices = {
        name: load_hardware(name) for text in plans for name in read_plan(text)[:2] if name is not None
    }
    return Answer(
        verb="compare",
        title=f"{model.name}: {len(plans)} plans side by side",
        verdict=_verdict(sides, best, known),
        tables=(
            Table(
                title=f"Decode at {context:,} tokens within {tpot_s * 1e3:g} ms",
                columns=(
                    Column("plan", "plan"),
                    Column("layout", "layout"),
                    Column("packages", "packages", "count"),
                    Column("batch", "batch", "count"),
                    Column("tpot_s", "TPOT", "seconds"),
                    Column("tokens_per_s_per_package", "tok/s/pkg", "count"),
                    Column("usd_per_mtok", "USD/1M out", "usd"),
                    Column("prompt_usd_per_mtok", "USD/1M in", "usd"),
                ),
                rows=rows,
                best=best,
            ),
        ),
        charts=(
            Bars(
                title="USD per million decoded tokens" if known else "Tokens a second and package",
                x_label="USD" if known else "tokens/s",
                labels=tuple(f"{s.plan}  ({s.layout})" for s in sides),
                parts=(
                    (
                        "decode",
                        tuple(
                            (s.usd_per_mtok or 0.0) if known else s.tokens_per_s_per_package for s in sides
                        ),
                    ),
                ),
            ),
        ),
        assumed=(
            Assumed("jitter", f"{afd.JITTER_S * 1e3:g} ms a token, on every plan", "StepMesh"),
            Assumed("packages", f"at most {max_packages}", "given or the default"),
            Assumed(
                "prompt price", "4,096 tokens on the smallest instance", "divided by its own packages only"
            ),
            *device_assumptions(devices.values()),
            *model_assumptions([model]),
        ),
        formulas=("cost.throughput", "afd.period"),
        facts={"plans": rows, "best": sides[best].plan},
    )


def _key(s: Side, priced: bool) -> float:
    return (s.usd_per_mtok or math.inf) if priced else -s.tokens_per_s_per_package


def _verdict(sides: Sequence[Side], best: int, known: bool) -> str:
    chosen = sides[best]
    others = [s for i, s in enumerate(sides) if i != best]
    if known and chosen.usd_per_mtok is not None:
        gaps = [
            f"{s.plan} costs {(s.usd_per_mtok or math.inf) / chosen.usd_per_mtok - 1:.0%} more"
            for s in others
        ]
        return (
            f"{chosen.plan} is cheapest at {chosen.usd_per_mtok:.3f} USD a million; " + ", ".join(gaps) + "."
        )
    return f"{chosen.plan} decodes most, {chosen.tokens_per_s_per_package:,.0f} tokens/s a package."
