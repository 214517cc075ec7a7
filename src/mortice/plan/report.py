"""`plan report`: every question about one model and a list of hardware on one page."""

from collections.abc import Callable, Sequence

from mortice.cost import (
    Convention,
    active_parameters,
    arithmetic_intensity,
    effective_rank,
    kv_cache_bytes,
    parameters,
)
from mortice.plan import afd
from mortice.plan.afd_question import afd_question
from mortice.plan.answer import Answer
from mortice.plan.compare import compare_question, read_plans
from mortice.plan.cost_question import cost_question
from mortice.plan.density import density_question
from mortice.plan.design import Frame, design_question
from mortice.plan.ep import ep_question
from mortice.plan.inputs import racks
from mortice.plan.kv import kv_question
from mortice.plan.measured import MODELLED, Measured
from mortice.plan.page.render import render
from mortice.plan.roofline import roofline_question
from mortice.plan.supernode import supernode_question
from mortice.plan.words import scaled
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape


def report(
    model: ModelShape,
    devices: Sequence[HardwareSpec],
    rule: Convention,
    *,
    context: int,
    tpot_s: float,
    command: str,
    measured: Measured = MODELLED,
) -> str:
    """The page. A question that has no answer for this model or hardware is on it with its reason."""
    answers = [
        _asked("roofline", lambda: roofline_question([model], devices, context, rule)),
        _asked("cost", lambda: cost_question([model], devices, _contexts(context), rule, measured=measured)),
        _asked("kv", lambda: kv_question(model, devices, context, measured=measured)),
        _asked("density", lambda: density_question([model], devices, rule, tpot_s=tpot_s)),
        _asked("afd", lambda: _best_afd(model, devices, context, tpot_s, measured)),
        _asked("ep", lambda: ep_question(model, _fastest_network(devices), measured=measured)),
        _asked("compare", lambda: _side_by_side(model, devices, context, tpot_s, measured)),
        _asked(
            "supernode",
            lambda: supernode_question(model, racks("gb200-nvl72,vera-rubin-nvl72,cloudmatrix384")),
        ),
        _asked("design", lambda: design_question(_frame(model, context, tpot_s), devices, devices)),
    ]
    facts = (
        ("parameters", _billions(parameters(model))),
        ("active a token", _billions(active_parameters(model))),
        ("layers x hidden", f"{model.num_layers} x {model.hidden_size}"),
        ("KV a token, 8 bit", scaled(float(kv_cache_bytes(model, context, "fp8")) / context, "B")),
        ("intensity, 8 bit", f"{float(arithmetic_intensity(model, context)):.1f} FLOP/B"),
        ("effective rank", f"{effective_rank(model):,}"),
    )
    kinds = ", ".join(dict.fromkeys(g.attention.family for g in model.groups))
    lead = (
        f"{kinds} attention{', ' + str(model.moe.num_experts) + ' experts' if model.moe else ', dense'}; decode at "
        f"{context:,} tokens of context on {', '.join(d.title for d in devices)}, {rule.name} convention."
    )
    return render(f"{model.name}: what it costs and where to cut it", lead, facts, answers, command=command)


def _billions(count: float) -> str:
    return f"{count / 1e9:.3g} B"


def _asked(verb: str, question: Callable[[], Answer]) -> Answer:
    try:
        return question()
    except RequestError as error:
        return Answer(
            verb=verb,
            title=f"{verb.capitalize()}: no answer for this model and hardware",
            verdict=error.message,
        )


def _contexts(context: int) -> list[int]:
    return sorted({context, 32768, 131072})


def _best_afd(
    model: ModelShape, devices: Sequence[HardwareSpec], context: int, tpot_s: float, measured: Measured
) -> Answer:
    """The cheapest pair among the given hardware. Raises the first reason where no pair has a plan."""
    found: list[tuple[float, float, int, afd.AfdProblem]] = []
    reasons: list[RequestError] = []
    for a in devices:
        for f in devices:
            try:
                p = afd.problem(model, a, f, context, tpot_s=tpot_s, measured=measured)
                best = afd.search(p, max_packages=128)[0]
                found.append((best.usd_per_mtok, -best.tgs, len(found), p))
            except RequestError as error:
                reasons.append(error)
    if not found:
        raise reasons[0]
    return afd_question(min(found, key=lambda item: item[:3])[3])


def _side_by_side(
    model: ModelShape, devices: Sequence[HardwareSpec], context: int, tpot_s: float, measured: Measured
) -> Answer:
    plans = read_plans([device.name for device in devices], known=devices)
    return compare_question(model, plans, context, tpot_s=tpot_s, measured=measured)


def _fastest_network(devices: Sequence[HardwareSpec]) -> HardwareSpec:
    return max(devices, key=lambda d: max((link.bytes_per_s for link in d.links), default=0.0))


def _frame(model: ModelShape, context: int, tpot_s: float) -> Frame:
    """The model's own frame and floors: what else could have been built of it?"""
    return Frame(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        min_rank=effective_rank(model),
        active_params=float(active_parameters(model)),
        context=context,
        tpot_s=tpot_s,
    )
