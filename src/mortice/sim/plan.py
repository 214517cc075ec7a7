"""What is simulated: how many workers, what they are made of, the delays between them, and who decides."""

from typing import Literal

import msgspec

from mortice.sched.prefill_order import PrefillOrder
from mortice.sched.setup import Setup
from mortice.specs.step_spread import StepSpread
from mortice.specs.worker_times import WorkerTimes


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is made of, whichever role it wears. Seconds, tokens, bytes."""

    times: WorkerTimes
    token_budget: int = 2048  # of one step
    max_num_seqs: int = 256
    bytes_per_s: float = 0.0  # of its port, each direction; 0: no limit
    order: PrefillOrder | None = None


class Physics(msgspec.Struct, frozen=True, kw_only=True):
    """Delays of the cluster itself, seconds."""

    transfer_base_s: float = 0.001  # of one hand-over, beside its bytes
    start_s: float = 45.0
    flip_s: float = 0.05
    report_s: float = 0.0  # period of workers' reports; 0: none, loads are known exactly
    report_delay_s: float = 0.0
    lease_s: float = 30.0
    num_routers: int = 1  # each knows what it routed itself, the rest from reports
    lends: bool = False  # all workers map one memory: a decode worker reads a prompt's KV where it lies
    spread: StepSpread | None = None  # of steps that only decode; None: a step takes what its counts say
    prompt_spread: StepSpread | None = None  # of steps with prompts in them
    seed: int = 0  # of what is drawn


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated."""

    setup: Setup
    prefill: int
    decode: int
    mixed: int = 0
    prefill_body: Body
    decode_body: Body
    physics: Physics = Physics()
    convertible: bool = False
    fidelity: Literal["macro", "exact"] = "macro"  # exact: the engine's own scheduler, token by token
