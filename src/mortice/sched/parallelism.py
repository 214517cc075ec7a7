"""Tensor parallelism of each phase from profiles: the most throughput per accelerator among those that meet the target, the
lowest latency if none does (DOPD's profiler; chosen offline, since a change reloads the weights)."""

from collections.abc import Mapping

import msgspec

from mortice.specs.errors import RequestError
from mortice.specs.worker_times import WorkerTimes


class Degree(msgspec.Struct, frozen=True):
    """The chosen degree. `meets` is False where no degree meets the target; the latency says by how much."""

    tp: int
    latency_s: float
    rate_per_gpu: float  # prompts or tokens a second
    meets: bool


def prefill_degree(profiles: Mapping[int, WorkerTimes], prompt_len: float, ttft_s: float) -> Degree:
    """`profiles` by degree. Raises RequestError without any."""
    found = []
    for tp, times in sorted(profiles.items()):
        latency = times.prefill_s(prompt_len)
        found.append(Degree(tp, latency, 1.0 / latency / times.gpus, latency <= ttft_s))
    return _choose(found)


def decode_degree(profiles: Mapping[int, WorkerTimes], context: float, tpot_s: float) -> Degree:
    """The batch is the largest that meets the target and fits."""
    found = []
    for tp, times in sorted(profiles.items()):
        batch = times.best_batch(context, tpot_s)
        meets = batch >= 1
        batch = max(1, batch)
        step = times.decode_s(batch, batch * context)
        found.append(Degree(tp, step, batch / step / times.gpus, meets))
    return _choose(found)


def _choose(found: list[Degree]) -> Degree:
    if not found:
        raise RequestError("profiles: at least one degree of tensor parallelism is needed", param="profiles")
    good = [d for d in found if d.meets]
    return max(good, key=lambda d: (d.rate_per_gpu, -d.tp)) if good else min(found, key=lambda d: d.latency_s)
