"""What the control plane is set up with, from the deployment document and what was measured of the workers."""

from mortice.cost.worker_times import WorkerTimes
from mortice.sched.actions import Bounds
from mortice.sched.admission import Admit
from mortice.sched.controller import Pace
from mortice.sched.plane import Setup
from mortice.specs.deployment import Deployment


def needs_times(deployment: Deployment) -> bool:
    """Whether decisions hang on how long a worker's steps take."""
    control = deployment.control
    return (
        control.policy not in ("static", "reactive") or control.reject_late is not None or control.convertible
    )


def plane_setup(deployment: Deployment, times: WorkerTimes | None) -> Setup:
    control = deployment.control
    return Setup(
        block_size=deployment.limits.block_size,
        local_prefill_tokens=deployment.local_prefill_tokens,
        token_budget=deployment.limits.token_budget,
        prefill_times=times,
        decode_times=times,
        slo=control.slo,
        policy=control.policy,
        bounds=Bounds(
            min_prefill=control.min_prefill,
            min_decode=control.min_decode,
            max_gpus=control.max_workers,
            can_scale=control.max_workers is not None,
        ),
        pace=Pace(
            period_s=control.period_s,
            start_s=control.start_s,
            patience=control.patience,
            dwell_s=control.dwell_s,
            hysteresis=control.hysteresis,
            idle_s=control.idle_s,
            forecast=control.forecast,
        ),
        admit=Admit(late=control.reject_late),
    )
