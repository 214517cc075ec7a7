"""What the control plane is set up with, from a deployment document: the same for the live cluster and the simulator."""

import msgspec

from mortice.sched.actions import Bounds
from mortice.sched.admission import Admit
from mortice.sched.controller import Pace
from mortice.sched.prefix_fetch import PrefixFetch
from mortice.specs.cluster import ClusterSpec, PolicyName
from mortice.specs.deployment import Deployment
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes

GOOD = SLO(ttft_ms=2000.0, tpot_ms=80.0)  # what DOPD (arXiv 2511.20982) counts as good


class Setup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that decisions hang on beside the events; the first line of a decision log."""

    block_size: int = 16
    local_prefill_tokens: int = 64
    token_budget: int = 2048  # of a step of an undivided worker
    prefill_times: WorkerTimes | None = None
    decode_times: WorkerTimes | None = None
    slo: SLO = SLO()
    policy: PolicyName = "static"
    bounds: Bounds = Bounds(can_scale=False)
    pace: Pace = Pace()
    admit: Admit = Admit()
    fetch: PrefixFetch | None = (
        None  # prefixes may be sent from one prefill worker to another; None: they are not
    )
    router: int = 0  # which of several routers this is


def setup_of(
    deployment: Deployment,
    *,
    prefill_times: WorkerTimes | None,
    decode_times: WorkerTimes | None,
    policy: PolicyName | None = None,
) -> Setup:
    """`policy` overrides the document's. A policy that works for limits, where none are given, works for `GOOD`."""
    spec = deployment.cluster or ClusterSpec()
    chosen = policy or spec.policy
    slo = spec.slo if spec.slo.limits() or chosen == "static" else GOOD
    return Setup(
        block_size=deployment.limits.block_size,
        local_prefill_tokens=deployment.local_prefill_tokens,
        token_budget=deployment.limits.token_budget,
        prefill_times=prefill_times,
        decode_times=decode_times,
        slo=slo,
        policy=chosen,
        bounds=Bounds(
            min_prefill=spec.min_prefill,
            min_decode=spec.min_decode,
            max_gpus=spec.max_gpus,
            prefill_gpus=prefill_times.gpus if prefill_times else 1,
            decode_gpus=decode_times.gpus if decode_times else 1,
            max_flips=max_flips(deployment.prefill + deployment.decode),
            can_scale=spec.max_gpus is not None and chosen != "static",
        ),
        pace=Pace(
            period_s=spec.period_s,
            start_s=spec.start_s,
            patience=spec.patience,
            dwell_s=spec.dwell_s,
            hysteresis=spec.hysteresis,
            idle_s=spec.idle_s,
            forecast=spec.forecast,
        ),
        admit=Admit(late=spec.reject_late),
    )


def max_flips(workers: int) -> int:
    """Roles that one decision may change in a fleet of so many: a quarter of it, and never fewer than 8."""
    return max(8, workers // 4)


def needs_times(deployment: Deployment) -> bool:
    """Whether decisions hang on how long a worker's steps take."""
    spec = deployment.cluster or ClusterSpec()
    return spec.policy not in ("static", "reactive") or spec.reject_late is not None or spec.convertible
