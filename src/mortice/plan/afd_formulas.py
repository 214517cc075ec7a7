"""What the published closed forms say of a plan: Step-3's stages, MegaScale-Infer's balance, the A/F ratio.

The plan itself comes from `afd.py`; these check it from outside, and say where they would go another way. A worker of
the A/F ratio is one attention package; the FFN side is all F instances of the plan together.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from mortice.plan import afd
from mortice.plan.af_ratio import (
    BundleTimes,
    barrier_load,
    best_whole_ratio,
    load_variance,
    mean_load,
    optimal_ratio,
    simulate,
    throughput,
)
from mortice.plan.answer import Column, Table
from mortice.plan.megascale import micro_batches_needed, total_s
from mortice.plan.pipeline import fits_budget, iteration_s, stage_budget_s
from mortice.plan.words import seconds
from mortice.specs.workload import read_trace

MAX_SLOT_STEPS = 4_000_000  # of the simulation: workers x slots x steps
MAX_ATTENTION = 48  # whole A instances that the ratio may choose


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """(prompt, answer) tokens of a trace's requests; what a slot holds on average follows from them."""

    name: str
    pairs: tuple[tuple[int, int], ...]

    @property
    def mean(self) -> float:
        """theta, tokens of context of a slot at a random step."""
        return mean_load(*zip(*self.pairs, strict=True))

    @property
    def variance(self) -> float:
        return load_variance(*zip(*self.pairs, strict=True))


def read_lengths(path: Path) -> Lengths:
    """Of a trace file. Raises RequestError, with the line, for a file that is no trace."""
    trace = read_trace(path)
    return Lengths(name=trace.name, pairs=tuple((r.prompt_len, r.output_len) for r in trace.requests))


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """The A/F-ratio formula on this plan's own times of an expert layer."""

    optimal: float  # r* in A packages
    instances: int  # whole A instances of largest throughput a package, barrier included
    tokens_per_s: float  # a layer and package at the plan's own ratio
    simulated: float | None  # the same, step by step with the trace's lengths; None without a trace
    barrier: float  # load of the busiest worker over the mean


def bundle_times(p: afd.AfdProblem, plan: afd.Candidate) -> BundleTimes:
    """Linear times of one expert layer round the plan: attention by context, FFN and link by requests."""
    step = max(1, p.context // 4)
    near, far = (
        afd.layer_stages(
            msgspec.structs.replace(p, context=context, context_variance=0.0),
            plan.num_attention,
            plan.num_ffn,
            plan.per_gpu,
        )
        for context in (p.context, p.context + step)
    )
    double = afd.layer_stages(p, 2 * plan.num_attention, plan.num_ffn, plan.per_gpu)
    slope = max(0.0, far.attention_s - near.attention_s) / (step * plan.per_gpu)
    requests = plan.num_attention * p.gpus_attention * plan.per_gpu
    ffn = max(0.0, double.ffn_s - near.ffn_s) / requests
    legs, legs_double = near.a2f_s + near.f2a_s, double.a2f_s + double.f2a_s
    link = max(0.0, legs_double - legs) / requests
    return BundleTimes(
        attention_s_per_token=slope,
        attention_s=near.attention_s - slope * plan.per_gpu * p.context,
        ffn_s_per_request=ffn,
        ffn_s=near.ffn_s - ffn * requests,
        link_s_per_request=link,
        link_s=legs - link * requests,
    )


def ratio(p: afd.AfdProblem, plan: afd.Candidate, lengths: Lengths | None, *, seed: int = 0) -> Ratio:
    """r* and the best whole number of A instances; with a trace also what a simulation of its lengths gives."""
    times, slots = bundle_times(p, plan), plan.per_gpu
    ffn_packages = plan.num_ffn * p.gpus_ffn
    workers = plan.num_attention * p.gpus_attention
    variance = lengths.variance if lengths else 0.0
    busiest = barrier_load(workers, slots, p.context, variance)
    best = best_whole_ratio(
        times,
        slots,
        p.context,
        variance,
        candidates=[n * p.gpus_attention for n in range(1, MAX_ATTENTION + 1)],
        ffn_packages=ffn_packages,
    )
    simulated = None
    if lengths is not None:
        steps = max(20, min(200, MAX_SLOT_STEPS // (workers * slots)))
        simulated = simulate(
            times, workers, slots, lengths.pairs, num_steps=steps, seed=seed, ffn_packages=ffn_packages
        )
    return Ratio(
        optimal=optimal_ratio(times, slots, busiest, ffn_packages),
        instances=best // p.gpus_attention,
        tokens_per_s=throughput(times, workers, slots, p.context, variance, ffn_packages),
        simulated=simulated,
        barrier=busiest / (slots * p.context),
    )


def formulas_table(p: afd.AfdProblem, plan: afd.Candidate, found: Ratio) -> Table:
    """The three papers' formulas, each with what it says here and what the plan has."""
    main = plan.main_stages
    budget = stage_budget_s(p.tpot_s, p.model.num_layers)
    late = [name for name, fits in fits_budget(main, budget).items() if not fits]
    link = (main.a2f_s + main.f2a_s) / 2
    layers = p.model.num_layers
    rows: list[Sequence[str]] = [
        (
            "Step-3, three stages",
            f"{seconds(budget)} a stage",
            "attention, both legs and experts each fit" if not late else f"too long: {', '.join(late)}",
        ),
        (
            "MegaScale-Infer, micro-batches",
            str(micro_batches_needed(main.attention_s, main.ffn_s, link)),
            f"m >= 2 (1 + T_c / T_f); the plan has {plan.micro_batches}",
        ),
        (
            "MegaScale-Infer, balance",
            balance(p, plan),
            f"A instances that keep the experts busy; the plan has {plan.num_attention}",
        ),
        (
            "MegaScale-Infer, T_total",
            seconds(total_s(main.attention_s, main.ffn_s, link, plan.micro_batches, layers)),
            f"the period formula, with gather and scatter, gives {seconds(iteration_s(main, plan.micro_batches, layers))}",
        ),
        (
            "A/F ratio, r*",
            f"{found.optimal:.1f} packages, {found.optimal / p.gpus_attention:.1f} A",
            f"whole instances: {found.instances}A{plan.num_ffn}F; the plan has {plan.name}, bound by the TPOT too",
        ),
        (
            "A/F ratio, barrier",
            f"{found.barrier - 1:.1%}",
            "busiest attention package over the mean"
            + ("" if found.simulated is not None else "; all sequences are taken to be alike: give --trace"),
        ),
    ]
    if found.simulated is not None:
        rows.append(
            (
                "A/F ratio, simulated",
                f"{found.simulated / found.tokens_per_s - 1:+.1%}",
                "throughput of this plan's ratio with the trace's lengths, step by step, against the formula's",
            )
        )
    return Table(
        title="What the published formulas say of this plan",
        columns=(Column("formula", "formula"), Column("value", "value"), Column("meaning", "meaning")),
        rows=tuple(dict(zip(("formula", "value", "meaning"), row, strict=True)) for row in rows),
    )


def balance(p: afd.AfdProblem, plan: afd.Candidate) -> str:
    """n_a = k1 / k3 of the F side as a whole: slopes of attention and experts by requests of a package."""
    more = afd.layer_stages(p, plan.num_attention, plan.num_ffn, 2 * plan.per_gpu)
    double = afd.layer_stages(p, 2 * plan.num_attention, plan.num_ffn, plan.per_gpu)
    main = plan.main_stages
    attention = (more.attention_s - main.attention_s) / plan.per_gpu
    experts = (double.ffn_s - main.ffn_s) / (plan.num_attention * p.gpus_attention * plan.per_gpu)
    if experts <= 1e-3 * attention / p.gpus_attention:
        return "no limit: experts are bound by their weights"
    return f"{attention / experts / p.gpus_attention:.1f}"
