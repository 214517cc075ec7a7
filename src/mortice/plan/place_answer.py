"""What a placement search found, in words, tables and curves."""

import msgspec

from mortice.plan.answer import Answer, Assumed, Column, Lines, Mark, Series, Table
from mortice.plan.inputs import device_assumptions, model_assumptions
from mortice.plan.place import KEEP, Placement, Search, plan_with_times
from mortice.plan.place_candidates import Candidate, Question
from mortice.sim.evaluate import attainment_at
from mortice.specs.slo import SLO
from mortice.specs.workload import Trace

RATES = (0.4, 0.6, 0.75, 0.85, 0.95, 1.0, 1.05, 1.15, 1.3)  # of the best goodput
SCALES = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5)


def place_answer(
    question: Question, search: Search, found: Placement, trace: Trace, *, curves: bool
) -> Answer:
    """`curves`: simulate attainment against rate and against SLO scale too."""
    best, whole = found.best, found.together
    return Answer(
        verb="place",
        title=f"{question.model.name} on {question.gpus} x {question.hardware.name}",
        verdict=_verdict(found),
        tables=(_table(found),),
        charts=_curves(question, search, best, whole) if curves else (),
        assumed=(
            Assumed("arrivals", "Poisson", "lengths are drawn from the trace in pairs, with replacement"),
            Assumed(
                "attainment",
                f"both limits, {question.slo.target:.0%} of all requests",
                "the stricter reading",
            ),
            Assumed("longest request", f"{question.longest} tokens", "of the trace"),
            Assumed(
                "formats",
                f"weights {question.formats.weights}, KV {question.formats.kv}",
                "given or the card's",
            ),
            *device_assumptions([question.hardware], prices=False),
            *model_assumptions([question.model]),
        ),
        notes=(
            f"{found.considered} placements considered, {found.runs} runs of {len(search.samples[0].gaps):,} requests "
            f"simulated: of cuts and of undivided ones the {KEEP} best by closed forms",
        ),
        facts={
            "algorithm": found.algorithm,
            "trace": trace.name,
            "disaggregate": best.prefill is not None,
            "best": _row(best),
            "together": _row(whole) if whole else None,
            "tied": list(found.tied),
            "considered": found.considered,
            "runs": found.runs,
            "deployment": msgspec.to_builtins(best.document),
        },
    )


def _verdict(found: Placement) -> str:
    best, whole = found.best, found.together
    rate = f"{best.goodput:.3g} requests/s ({best.low:.3g} to {best.high:.3g})"
    if best.prefill is None:
        others = [c for c in found.candidates if c.prefill is not None and c.goodput > 0]
        less = f"; the best cut serves {1 - others[0].goodput / best.goodput:.0%} less" if others else ""
        return f"Do not disaggregate: {best.name} serve {rate} within the SLO{less}."
    if whole is None:
        return f"{best.name} serves {rate} within the SLO."
    gain = (
        f"{best.goodput / whole.goodput:.2f} times"
        if whole.goodput
        else "where they meet it at no rate, instead of"
    )
    tie = " The two are tied: their intervals overlap." if whole.name in found.tied else ""
    return f"Disaggregate: {best.name} serves {rate} within the SLO, {gain} what undivided instances do.{tie}"


def _row(c: Candidate) -> dict:
    return {
        "placement": c.name,
        "prefill": c.num_prefill,
        "prefill_layout": [c.prefill.tp, c.prefill.pp] if c.prefill else None,
        "decode": c.num_decode,
        "decode_layout": [c.decode.tp, c.decode.pp],
        "gpus": c.gpus,
        "goodput": c.goodput,
        "goodput_ci95": [c.low, c.high],
        "per_gpu": c.per_gpu,
        "draws": c.runs,
        "expected": c.expected,
    }


def _table(found: Placement) -> Table:
    return Table(
        title="Placements, most requests a second within the SLO first; 0: behind after its first run",
        columns=(
            Column("placement", "placement, TP·PP"),
            Column("gpus", "devices", "count"),
            Column("goodput", "goodput, req/s", "number"),
            Column("per_gpu", "a device", "number"),
            Column("expected", "closed form", "number"),
            Column("draws", "draws", "count"),
        ),
        rows=tuple(_row(c) for c in found.candidates),
        best=0,
    )


def _curves(
    question: Question, search: Search, best: Candidate, whole: Candidate | None
) -> tuple[Lines, ...]:
    """Attainment of the best and of the best undivided placement, against rate and against SLO scale."""
    sample, slo = search.samples[0], question.slo
    by_rate: list[Series] = []
    by_scale: list[Series] = []
    for candidate in (best, whole):
        if candidate is None or (candidate is best and by_rate):
            continue
        plan = plan_with_times(candidate.document)
        rates = [best.goodput * factor for factor in RATES]
        shares = [attainment_at(plan, sample, rate, slo, give_up=False).attainment for rate in rates]
        by_rate.append(Series(candidate.name, tuple(rates), tuple(shares)))
        scaled = []
        for factor in SCALES:
            tight = SLO(
                ttft_ms=_times(slo.ttft_ms, factor), tpot_ms=_times(slo.tpot_ms, factor), target=slo.target
            )
            scaled.append(attainment_at(plan, sample, 0.7 * best.goodput, tight, give_up=False).attainment)
        by_scale.append(Series(candidate.name, SCALES, tuple(scaled)))
    mark = (Mark("target", y=slo.target),)
    return (
        Lines(title="Attainment against rate", x_label="requests a second", y_label="within the SLO",
              series=tuple(by_rate), marks=mark),
        Lines(title="Attainment against SLO scale, at 0.7 of the goodput", x_label="both limits times",
              y_label="within the SLO", series=tuple(by_scale), marks=mark),
    )  # fmt: skip


def _times(limit: float | None, factor: float) -> float | None:
    return None if limit is None else limit * factor
