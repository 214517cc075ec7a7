"""Plans and arrivals in a line, for tests, benchmarks and searches: identical workers of given times, drawn requests."""

from collections.abc import Sequence

import msgspec
import numpy as np

from mortice.sched.actions import Bounds
from mortice.sched.controller import Pace
from mortice.sched.setup import Setup, max_flips
from mortice.sim.plan import Body, Physics, Plan
from mortice.sim.request import SimRequest
from mortice.specs.cluster import PolicyName
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes


def pools(
    times: WorkerTimes,
    prefill: int,
    decode: int,
    mixed: int = 0,
    *,
    slo: SLO,
    policy: PolicyName = "static",
    decode_times: WorkerTimes | None = None,
    bytes_per_s: float = 50e9,
    prefill_budget: int = 8192,
    token_budget: int = 2048,
    max_num_seqs: int = 512,
    bounds: Bounds | None = None,
    pace: Pace | None = None,
    physics: Physics | None = None,
    local_prefill_tokens: int = 64,
    block_size: int = 16,
    convertible: bool = False,
) -> Plan:
    """A plan of `prefill`, `decode` and `mixed` workers; `times` are prefill workers', and all workers' without
    `decode_times`. Without `bounds` the number of workers is fixed."""
    other = decode_times or times
    setup = Setup(
        block_size=block_size,
        local_prefill_tokens=local_prefill_tokens,
        token_budget=token_budget,
        prefill_times=times,
        decode_times=other,
        slo=slo,
        policy=policy,
        bounds=bounds
        or Bounds(
            can_scale=False,
            prefill_gpus=times.gpus,
            decode_gpus=other.gpus,
            max_flips=max_flips(prefill + decode + mixed),
        ),
        pace=pace or Pace(),
    )
    body = Body(
        times=times,
        token_budget=prefill_budget,
        max_num_seqs=max_num_seqs,
        bytes_per_s=bytes_per_s * times.gpus,
    )
    decoding = msgspec.structs.replace(
        body, times=other, token_budget=token_budget, bytes_per_s=bytes_per_s * other.gpus
    )
    return Plan(
        setup=setup,
        prefill=prefill,
        decode=decode,
        mixed=mixed,
        prefill_body=body,
        decode_body=decoding,
        physics=physics or Physics(),
        convertible=convertible,
    )


def arrivals(at_s: Sequence[float], prompt_len: Sequence[int], output_len: Sequence[int]) -> list[SimRequest]:
    """Requests at given instants, in order."""
    rows = zip(at_s, prompt_len, output_len, strict=True)
    return [SimRequest(i, float(t), int(p), int(o), []) for i, (t, p, o) in enumerate(rows)]


def poisson(
    count: int,
    rate: float,
    seed: int,
    *,
    prompt: float = 800.0,
    output: float = 150.0,
    spread: float = 0.8,
    longest: int = 8000,
) -> list[SimRequest]:
    """Poisson arrivals with log-normal lengths around medians; `spread` is the deviation of the logarithm, 0: all alike."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1.0 / rate, count))
    prompts = np.clip(prompt * np.exp(rng.normal(0, spread, count)), 1, longest).round()
    outputs = np.clip(output * np.exp(rng.normal(0, spread, count)), 1, longest).round()
    return arrivals(at.tolist(), prompts.astype(int).tolist(), outputs.astype(int).tolist())
