"""`plan compare`: two or more plans side by side, each told in a few characters.

h800            the best plan on H800 that keeps attention and experts together
h20/h800        the best plan with attention on H20 and experts on H800
h20/h800:6A2F   that many whole instances; h800:6A2F where both are of one kind
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from mortice.cost import Layout, layout_fits, max_batch, prefill_step
from mortice.cost.step import usd_per_mtok
from mortice.plan import afd
from mortice.plan.answer import Answer, Assumed, Bars, Column, Table
from mortice.plan.inputs import device_assumptions, model_assumptions, priced
from mortice.plan.measured import MODELLED, Measured
from mortice.plan.placement import DP, TP, formats_for, placement_table
from mortice.specs.catalogue import load_hardware
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape

PROMPT = 4096  # tokens of the prompt that prefill is priced with
MAX_PREFILL = 64  # replicas of a prefill instance
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


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's text with its hardware looked up; `ffn` None: both halves together."""

    text: str
    attention: HardwareSpec
    ffn: HardwareSpec | None
    counts: tuple[int, int] | None  # (N_A, N_F)

    @property
    def devices(self) -> tuple[HardwareSpec, ...]:
        return (self.attention,) if self.ffn is None else (self.attention, self.ffn)


def read_plan(text: str) -> tuple[str, str | None, int | None, int | None]:
    """(attention hardware, FFN hardware, N_A, N_F) of a plan's text. A path with a slash must exist as a file."""
    if Path(text).is_file():
        return text, None, None, None
    match = PLAN.fullmatch(text.strip())
    if match is None:
        raise RequestError(f"plan must be HW, A/F, HW:4A2F or A/F:4A2F, got {text!r}", param="plan")
    if not match["a"]:
        return match["attention"], match["ffn"], None, None
    counts = int(match["a"]), int(match["f"])
    if min(counts) < 1:
        raise RequestError(f"plan: instances must be at least 1, got {text!r}", param="plan")
    return match["attention"], match["ffn"] or match["attention"], *counts


def read_plans(
    texts: Sequence[str], prices: Mapping[str, float] | None = None, known: Sequence[HardwareSpec] = ()
) -> list[Plan]:
    """Plans with their hardware: of `known` by name, else of the catalogue or a file; `prices` replace theirs."""
    if len(texts) < 2:
        raise RequestError("plan: give two or more, --plan h800 --plan h20/h800", param="plan")
    by_name = {device.name: device for device in known}
    return [_resolve(text, by_name, prices or {}) for text in texts]


def _resolve(text: str, known: Mapping[str, HardwareSpec], prices: Mapping[str, float]) -> Plan:
    attention, ffn, num_a, num_f = read_plan(text)
    devices = {name: known.get(name) or load_hardware(name) for name in (attention, ffn) if name is not None}
    used = {d.name for d in devices.values()}
    mine = {d.name: d for d in priced(devices.values(), {k: v for k, v in prices.items() if k in used})}
    return Plan(
        text=text,
        attention=mine[devices[attention].name],
        ffn=None if ffn is None else mine[devices[ffn].name],
        counts=None if num_a is None or num_f is None else (num_a, num_f),
    )


def devices_of(plans: Sequence[Plan]) -> list[HardwareSpec]:
    """Each kind of hardware once."""
    return list({device.name: device for plan in plans for device in plan.devices}.values())


def side(
    model: ModelShape,
    plan: Plan,
    context: int,
    *,
    tpot_s: float,
    max_packages: int,
    attention: str = "bf16",
    measured: Measured = MODELLED,
) -> Side:
    """The plan's best layout within the TPOT. Raises RequestError where there is none."""
    prompt = prompt_usd(model, plan.attention, measured)
    if plan.ffn is None:
        table = placement_table(
            model,
            [plan.attention],
            context,
            max_packages=max_packages,
            attention=attention,
            measured=measured,
        )
        best = table.best(tpot_s, jitter_s=afd.JITTER_S)[0]
        return Side(
            plan=plan.text,
            layout=f"tp{best.tp} dp{best.dp} ep{best.ep} pp{best.pp}",
            packages=best.packages,
            batch=best.batch,
            tpot_s=best.tpot_s,
            tokens_per_s_per_package=best.tokens_per_s_per_package,
            usd_per_mtok=best.usd_per_mtok if math.isfinite(best.usd_per_mtok) else None,
            prompt_usd_per_mtok=prompt,
        )
    p = afd.problem(
        model, plan.attention, plan.ffn, context, tpot_s=tpot_s, measured=measured, attention_dtype=attention
    )
    if plan.counts is None:
        found = afd.search(p, max_packages=max_packages)[0]
    else:
        found = afd.best_of_layout(p, *plan.counts)[0]
    return Side(
        plan=plan.text,
        layout=f"{found.name}, m {found.micro_batches}",
        packages=found.packages,
        batch=found.batch,
        tpot_s=found.tpot_s,
        tokens_per_s_per_package=found.tgs,
        usd_per_mtok=found.usd_per_mtok if math.isfinite(found.usd_per_mtok) else None,
        prompt_usd_per_mtok=prompt,
    )


def prompt_usd(
    model: ModelShape, device: HardwareSpec, measured: Measured = MODELLED, tokens: int = PROMPT
) -> float | None:
    """USD of 10^6 prompt tokens on the cheapest prefill instance that holds the model, a prompt on each replica; None where
    none holds it or no price is known. Divided by the prefill packages alone, as decode is by its own."""
    if device.price is None:
        return None
    near = max([device.packages_per_node, *(link.span for link in device.links if link.tier == "domain")])
    replicas = (
        [dp for dp in DP if dp <= MAX_PREFILL] if model.moe_layers and device.has_link("scale_out") else [1]
    )
    tp, dp = (grid.ravel() for grid in np.meshgrid([n for n in TP if n <= near], replicas))
    layout = Layout(tp=tp, dp=dp, ep=tp * dp if model.moe_layers else 1)
    formats = formats_for(device)
    fits = layout_fits(model, layout) & (max_batch(model, device, layout, tokens, formats) >= dp)
    if not fits.any():
        return None
    kernels = measured.kernels(device)
    took = prefill_step(model, kernels, layout, tokens, batch=dp, formats=formats).total_s
    usd = np.asarray(usd_per_mtok(device, layout.packages, tokens * dp, took))
    return float(usd[fits].min())


def compare_question(
    model: ModelShape,
    plans: Sequence[Plan],
    context: int,
    *,
    tpot_s: float = 0.05,
    max_packages: int = 128,
    attention: str = "bf16",
    measured: Measured = MODELLED,
) -> Answer:
    sides = [
        side(
            model,
            plan,
            context,
            tpot_s=tpot_s,
            max_packages=max_packages,
            attention=attention,
            measured=measured,
        )
        for plan in plans
    ]
    devices = devices_of(plans)
    rows = tuple(msgspec.to_builtins(s) for s in sides)
    known = all(s.usd_per_mtok is not None for s in sides)
    best = min(range(len(sides)), key=lambda i: _key(sides[i], known))
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
                "prompt price",
                f"prompts of {PROMPT:,} tokens on the cheapest instance that holds the model",
                "divided by its own packages only",
            ),
            Assumed("attention", f"computed in {attention} where the card has it", "given or the default"),
            *measured.assumed(devices),
            *device_assumptions(devices),
            *model_assumptions([model]),
        ),
        notes=measured.notes(devices),
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
