"""The control plane's turns as the edge shows them."""

from collections.abc import Iterable, Sequence

from mortice.cluster.api import Division, Roles, Turn, WorkerInfo
from mortice.sched.actions import Action, Flip, Start, Stop, Undrain
from mortice.sched.controller import Decision
from mortice.sched.observation import Target
from mortice.sched.plane import ControlPlane


def roles_view(plane: ControlPlane, turns: Iterable[Turn], workers: Sequence[WorkerInfo]) -> Roles:
    setup = plane.setup
    counts = {role: plane.fleet.num(role) for role in ("prefill", "decode", "mixed")}
    return Roles(
        policy=setup.policy,
        division=Division(**counts),
        starting=sum(plane.starting.values()),
        draining=sum(not w.accepts for w in plane.fleet.workers.values()),
        most_workers=setup.bounds.max_gpus if setup.bounds.can_scale else None,
        ttft_ms=setup.slo.ttft_ms,
        tpot_ms=setup.slo.tpot_ms,
        period_s=setup.pace.period_s,
        workers=list(workers),
        turns=list(turns),
    )


def turn_view(decision: Decision) -> Turn:
    seen = decision.seen
    return Turn(
        t_s=round(decision.at_s, 3),
        rate=round(seen.rate, 3),
        expected_rate=None if decision.demand is None else round(decision.demand.rate, 3),
        prompt_mean=round(seen.prompt_mean, 1),
        output_mean=round(seen.output_mean, 1),
        met=round(seen.num_met / seen.num_ended, 4) if seen.num_ended else None,
        now=Division(seen.prefill, seen.decode, seen.mixed),
        wanted=_division(decision.target),
        other=_division(decision.other),
        actions=[action_words(action) for action in decision.actions],
        reason=decision.reason,
        distrusted=decision.distrusted,
    )


def action_words(action: Action) -> str:
    match action:
        case Flip(worker_id, role):
            return f"{worker_id} becomes {role}"
        case Undrain(worker_id, role):
            return f"{worker_id} stays as {role}"
        case Start(role):
            return f"start a {role} worker"
        case Stop(worker_id):
            return f"drain {worker_id}"


def _division(target: Target) -> Division:
    return Division(target.prefill, target.decode, target.mixed)
