"""`plan afd`: is it worth cutting attention from experts, and if so into how many whole instances?"""

import math

import msgspec

from mortice.cost import HONEST, dtype_bytes
from mortice.cost.published import cost_dtype
from mortice.plan import afd
from mortice.plan.afd_formulas import Lengths, formulas_table, ratio
from mortice.plan.answer import Answer, Assumed, Column, Gantt, Span, Table
from mortice.plan.dead_zone import max_hfu
from mortice.plan.density import density_row, terms
from mortice.plan.inputs import device_assumptions, model_assumptions
from mortice.plan.pipeline import RESOURCES, fits_budget, iteration_s, simulate, stage_budget_s
from mortice.plan.placement import Candidate as Colocated
from mortice.plan.placement import placement_table
from mortice.plan.words import seconds, significant
from mortice.specs.errors import RequestError

GANTT_LAYERS = 3
SAME = 0.02  # plans within two per cent are called equal: the model is no better than that


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """AFD against the best plan without it, by money where prices are known, else by tokens a package."""

    wins: bool
    ratio: float  # advantage of AFD: above 1 it is cheaper (or faster a package)
    by: str  # usd | tgs
    text: str


def colocated_best(p: afd.AfdProblem, max_packages: int, weights: str | None, kv: str) -> list[Colocated]:
    """The best plans that keep attention and experts together, on either hardware; empty if none meets the SLO.

    They are granted the same jitter as AFD.
    """
    devices = list({d.name: d for d in (p.attention, p.ffn)}.values())
    table = placement_table(
        p.model,
        devices,
        p.context,
        weights=(weights,),
        kv=kv,
        max_packages=max_packages,
        imbalance=p.imbalance,
        context_variance=p.context_variance,
        attention=p.attention_formats.attention,
        measured=p.measured,
    )
    try:
        slowed = table.best(p.tpot_s, len(table), p.jitter_s)
    except RequestError:
        return []  # nothing colocated meets the SLO: the verdict says so
    priced = all(math.isfinite(c.usd_per_mtok) for c in slowed)
    return sorted(slowed, key=lambda c: c.usd_per_mtok if priced else -c.tokens_per_s_per_package)


def judge(best: afd.Candidate, others: list[Colocated]) -> Verdict:
    """A plain verdict, with what binds the loser."""
    money = math.isfinite(best.usd_per_mtok)
    mine = f"{best.usd_per_mtok:.3f} USD a million tokens" if money else f"{best.tgs:,.0f} tokens/s a package"
    if not others:
        text = f"AFD is the only plan here that meets the SLO: {best.name} at {mine}."
        return Verdict(wins=True, ratio=math.inf, by="usd" if money else "tgs", text=text)
    rival = others[0]
    ratio = rival.usd_per_mtok / best.usd_per_mtok if money else best.tgs / rival.tokens_per_s_per_package
    theirs = f"{rival.usd_per_mtok:.3f}" if money else f"{rival.tokens_per_s_per_package:,.0f}"
    kept = f"{rival.packages} x {rival.hardware} together (tp {rival.tp}, dp {rival.dp}, ep {rival.ep})"
    if ratio > 1 + SAME:
        text = f"AFD wins by {ratio - 1:.0%}: {best.name} at {mine} against {theirs} with {kept}."
    elif ratio >= 1 - SAME:
        text = f"AFD is even with keeping both together: {best.name} at {mine}, {theirs} with {kept}. Do not cut."
    else:
        text = (
            f"AFD loses here by {1 - ratio:.0%}: {best.name} at {mine} against {theirs} with {kept}. "
            f"What binds the cut plan is its {best.bottleneck}."
        )
    return Verdict(wins=ratio > 1 + SAME, ratio=ratio, by="usd" if money else "tgs", text=text)


def afd_question(
    p: afd.AfdProblem,
    *,
    max_packages: int = 128,
    num_attention: int | None = None,
    num_ffn: int | None = None,
    micro_batches: int | None = None,
    kv: str = "fp8",
    weights: str | None = None,
    lengths: Lengths | None = None,
    shown: int = 8,
) -> Answer:
    """The best whole-instance plans, or the one asked for, against the best plan that keeps both together.

    `lengths`: of the trace that the problem's context and its variance were read from.
    """
    wanted = (2, 3, 4) if micro_batches is None else (micro_batches,)
    if (num_attention is None) != (num_ffn is None):
        raise RequestError("num_attention and num_ffn must be given together", param="num_attention")
    if num_attention is not None and num_ffn is not None:
        found = afd.best_of_layout(p, num_attention, num_ffn, wanted)
    else:
        found = afd.search(p, max_packages=max_packages, micro_batches=wanted)
    best = found[0]
    others = colocated_best(p, max(max_packages, best.packages), weights, kv)
    verdict = judge(best, others)
    unique = _first_of_each(found)[:shown]
    found_ratio = ratio(p, best, lengths)
    return Answer(
        verb="afd",
        title=f"{p.model.name}: attention on {p.attention.name}, experts on {p.ffn.name}",
        verdict=verdict.text,
        tables=(
            _plans(unique),
            _stages(p, best),
            _checks(p, best),
            formulas_table(p, best, found_ratio),
            _together(others[:4]),
        ),
        charts=(gantt(best),),
        assumed=(
            Assumed("tpot", f"{p.tpot_s * 1e3:g} ms", "given or the default of 50 ms"),
            _context_assumed(p, lengths),
            *(Assumed(a.name, a.value, a.why) for a in afd.assumptions(p)),
            *device_assumptions([p.attention, p.ffn]),
            *model_assumptions([p.model]),
        ),
        notes=_notes(p, best),
        formulas=(
            "afd.period",
            "afd.budget",
            "afd.fanout",
            "afd.send",
            "afd.micro_batches",
            "afd.balance",
            "afd.ratio",
            "afd.load",
            "afd.dead_zone",
        ),
        facts={
            "wins": verdict.wins,
            "advantage": verdict.ratio if math.isfinite(verdict.ratio) else None,
            "best": plain(best),
            "ratio": msgspec.to_builtins(found_ratio),
            "plans": [plain(c) for c in unique],
            "colocated": [msgspec.to_builtins(c) for c in others[:4]],
        },
    )


def _context_assumed(p: afd.AfdProblem, lengths: Lengths | None) -> Assumed:
    if lengths is None:
        return Assumed("context", f"{p.context:,} tokens", "mean of what is held while decoding, all alike")
    return Assumed(
        "context",
        f"{p.context:,} tokens, deviation {math.sqrt(p.context_variance):,.0f}",
        f"what a slot holds in {lengths.name}, {len(lengths.pairs):,} requests, slots refilled at once",
    )


def _first_of_each(found: list[afd.Candidate]) -> list[afd.Candidate]:
    """One micro-batch count a layout: the best."""
    seen: dict[str, afd.Candidate] = {}
    for c in found:
        seen.setdefault(c.name, c)
    return list(seen.values())


def plain(c: afd.Candidate) -> dict:
    """A plan as JSON, its times in microseconds a layer."""
    main = c.main_stages
    return {
        "plan": c.name,
        "num_attention": c.num_attention,
        "num_ffn": c.num_ffn,
        "micro_batches": c.micro_batches,
        "per_gpu": c.per_gpu,
        "batch": c.batch,
        "packages": c.packages,
        "tpot_s": c.tpot_s,
        "tgs": c.tgs,
        "usd_per_mtok": c.usd_per_mtok if math.isfinite(c.usd_per_mtok) else None,
        "limited_by": c.limited_by,
        "bottleneck": c.bottleneck,
        "stages_us": {name: 1e6 * value for name, value in zip(RESOURCES, main.times, strict=True)},
    }


def gantt(c: afd.Candidate) -> Gantt:
    """The first layers of one iteration, event by event."""
    main = c.main_stages
    seen = simulate([main] * GANTT_LAYERS, c.micro_batches)
    names = {
        "attention": "attention",
        "a2f": "A to F",
        "gather": "gather",
        "ffn": "experts",
        "scatter": "scatter",
        "f2a": "F to A",
    }
    spans = tuple(
        Span(names[i.resource], i.micro_batch, i.start_s * 1e6, i.end_s * 1e6, str(i.layer))
        for i in seen.intervals
    )
    used = {span.lane for span in spans}
    return Gantt(
        title=f"{c.name}: {c.micro_batches} micro-batches through the first {GANTT_LAYERS} expert layers",
        x_label="us; numbers are layers",
        lanes=tuple(names[r] for r in RESOURCES if names[r] in used),
        spans=spans,
    )


def _plans(found: list[afd.Candidate]) -> Table:
    rows = tuple(plain(c) for c in found)
    return Table(
        title="Whole-instance plans, best first",
        columns=(
            Column("plan", "plan"),
            Column("micro_batches", "m", "count"),
            Column("per_gpu", "seqs a GPU", "count"),
            Column("batch", "batch", "count"),
            Column("packages", "packages", "count"),
            Column("tpot_s", "TPOT", "seconds"),
            Column("tgs", "tok/s/pkg", "count"),
            Column("usd_per_mtok", "USD/1M", "usd"),
            Column("bottleneck", "pipeline waits for"),
            Column("limited_by", "batch limited by"),
        ),
        rows=rows,
        best=0,
    )


def _stages(p: afd.AfdProblem, best: afd.Candidate) -> Table:
    """Times of every kind of layer against Step-3's budget: the period is set per kind, not by the mean."""
    budget = stage_budget_s(p.tpot_s, p.model.num_layers)
    rows = []
    for group, stages in zip(p.model.groups, best.stages, strict=True):
        kind = f"{group.attention.family}{'' if group.attention.kind in ('full', 'linear') else ' ' + group.attention.kind}"
        rows.append(
            {
                "layers": f"{group.count} x {kind}, {'experts' if group.ffn.is_moe else 'dense'}",
                **dict(zip(RESOURCES, stages.times, strict=True)),
                "period": max(best.micro_batches * stages.slowest_s, stages.total_s),
                "fits": all(fits_budget(stages, budget).values()),
            }
        )
    return Table(
        title=f"Seconds of one micro-batch in a layer of {best.name}; a stage may take {seconds(budget)}",
        columns=(
            Column("layers", "layers"),
            *(Column(name, name, "seconds") for name in RESOURCES),
            Column("period", "period", "seconds"),
            Column("fits", "in budget", "yes"),
        ),
        rows=tuple(rows),
    )


def _checks(p: afd.AfdProblem, best: afd.Candidate) -> Table:
    """The limits of the literature on the chosen plan."""
    main = best.main_stages
    held = afd.memory(p)
    experts = p.model.moe
    limit = density_row(
        p.model,
        p.ffn,
        terms(p.model, p.ffn, HONEST, tpot_s=p.tpot_s, weight_dtype=p.ffn_formats.expert_weights),
    )
    near = p.ffn.reach(p.gpus_ffn) if p.gpus_ffn > 1 else p.ffn.links[0]
    ceiling = (
        max_hfu(experts.expert_size, 0.8 * near.bytes_per_s, p.ffn.peak(cost_dtype(p.ffn)))
        if experts
        else 1.0
    )
    period = max(best.micro_batches * main.slowest_s, main.total_s)
    rows = [
        ("fan-out, attention end", seconds(best.attention_link_s), "both legs of one micro-batch, one layer"),
        (
            "fan-out, FFN end",
            seconds(best.ffn_link_s),
            "binds: " + ("attention end" if best.attention_link_s > best.ffn_link_s else "FFN end"),
        ),
        (
            "KV room a package",
            f"{held.kv_room / 1e9:.1f} GB",
            f"{held.sequences_per_gpu} sequences of {p.context:,} tokens",
        ),
        (
            "expert weights a package",
            f"{held.ffn_weights / best.num_ffn / p.gpus_ffn / 1e9:.1f} GB",
            f"least {afd.least_ffn_instances(p)} F instances",
        ),
        (
            "density",
            significant(limit.density),
            f"at least {significant(limit.min_density)} to be compute bound over NICs",
        ),
        (
            "dead zone",
            f"{ceiling:.1%}",
            f"of peak at most, experts {experts.expert_size if experts else 0} wide, 0.8 of {near.bytes_per_s / 1e9:g} GB/s",
        ),
        ("attention busy", f"{best.micro_batches * main.attention_s / period:.0%}", "of the period"),
        ("experts busy", f"{best.micro_batches * main.ffn_s / period:.0%}", "of the period"),
        (
            "closed form",
            seconds(iteration_s(main, best.micro_batches, p.model.num_layers)),
            f"event by event {seconds(_simulated(p, best))}; layers alike, without head and jitter",
        ),
    ]
    return Table(
        title="Checks",
        columns=(Column("check", "check"), Column("value", "value"), Column("meaning", "meaning")),
        rows=tuple({"check": a, "value": b, "meaning": c} for a, b, c in rows),
    )


def _simulated(p: afd.AfdProblem, best: afd.Candidate) -> float:
    return simulate([best.main_stages] * p.model.num_layers, best.micro_batches).makespan_s


def _together(others: list[Colocated]) -> Table:
    return Table(
        title="The same model kept together",
        columns=(
            Column("hardware", "hardware"),
            Column("packages", "packages", "count"),
            Column("tp", "tp", "count"),
            Column("dp", "dp", "count"),
            Column("ep", "ep", "count"),
            Column("pp", "pp", "count"),
            Column("batch", "batch", "count"),
            Column("tpot_s", "TPOT", "seconds"),
            Column("tokens_per_s_per_package", "tok/s/pkg", "count"),
            Column("usd_per_mtok", "USD/1M", "usd"),
        ),
        rows=tuple(msgspec.to_builtins(c) for c in others),
    )


def _notes(p: afd.AfdProblem, best: afd.Candidate) -> tuple[str, ...]:
    notes = [*p.measured.notes([p.attention, p.ffn])]
    if best.limited_by == "kv memory":
        notes.append("the batch is limited by KV memory, not by time: more memory or smaller KV would pay")
    if best.attention_link_s > best.ffn_link_s:
        notes.append(
            "the attention end of the link is the busier one: each A instance sends to every F instance"
        )
    if p.attention.price is None or p.ffn.price is None:
        notes.append(
            "a price is missing, so plans are compared by tokens a package; give --price NAME=USD_PER_HOUR"
        )
    if dtype_bytes(p.attention_formats.kv) < 2 and "fp8" not in p.attention.peaks:
        notes.append(
            f"{p.attention.name} has no 8-bit float arithmetic: 8-bit KV is unpacked, bytes halve but not the time"
        )
    return tuple(notes)
