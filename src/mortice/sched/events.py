"""What a driver tells the control plane. Tagged structs: one JSON line each in a decision log.

Times are seconds of the driver's one clock (never a worker's own), in the order of the events.
"""

import msgspec

from mortice.sched.fleet import Role


class Joined(msgspec.Struct, frozen=True, tag="joined", omit_defaults=True):
    """A worker is ready and takes requests in this role."""

    at_s: float
    worker_id: str
    role: Role
    num_blocks: int
    convertible: bool = False


class Left(msgspec.Struct, frozen=True, tag="left"):
    """A worker is gone: it died, was stopped, or fell silent. Its requests are told of one by one (`Lost` or `Ended`)."""

    at_s: float
    worker_id: str


class Ordered(msgspec.Struct, frozen=True, tag="ordered"):
    """A worker was started by somebody else than the control plane (a restart, an operator)."""

    at_s: float
    role: Role


class StartFailed(msgspec.Struct, frozen=True, tag="start_failed"):
    """A worker that was ordered will not come."""

    at_s: float
    role: Role


class Worn(msgspec.Struct, frozen=True, tag="worn"):
    """Somebody else (an operator) changed a worker's role."""

    at_s: float
    worker_id: str
    role: Role


class Reported(msgspec.Struct, frozen=True, tag="reported", omit_defaults=True):
    """What a worker says of itself. `slowdown`: its recent step over what the times expect; None where it is not known."""

    at_s: float
    worker_id: str
    num_requests: int
    free_blocks: int
    slowdown: float | None = None


class Cached(msgspec.Struct, frozen=True, tag="cached"):
    """Changes of a worker's prefix cache."""

    worker_id: str
    stored: list[bytes] = []
    removed: list[bytes] = []


class Arrived(msgspec.Struct, frozen=True, tag="arrived", omit_defaults=True):
    """A request, or one that lost its worker (`resumed`: it was decoding, `prompt_len` counts what it had given too)."""

    at_s: float
    request_id: str
    prompt_len: int
    names: list[bytes] = []
    resumed: bool = False


class Prefilled(msgspec.Struct, frozen=True, tag="prefilled"):
    """Its prompt is computed and more tokens are wanted."""

    at_s: float
    request_id: str


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """Its worker is gone; it will arrive again, or end."""

    at_s: float
    request_id: str


class Ended(msgspec.Struct, frozen=True, tag="ended", omit_defaults=True):
    """It is over. `ttft_s` None: it failed or was cancelled before its first token."""

    at_s: float
    request_id: str
    output_len: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    failed: bool = False


class Misforecast(msgspec.Struct, frozen=True, tag="misforecast"):
    """A fault that is put in on purpose: from now on every forecaster answers this. None: no number."""

    at_s: float
    answer: float | None


class Budgeted(msgspec.Struct, frozen=True, tag="budgeted"):
    """From now on so many accelerators at most: this plane's part of a budget that it shares (sched/budget.py)."""

    at_s: float
    max_gpus: int


class Tick(msgspec.Struct, frozen=True, tag="tick"):
    """A period of the control loop is over."""

    at_s: float


Event = (
    Joined
    | Left
    | Ordered
    | StartFailed
    | Worn
    | Reported
    | Cached
    | Arrived
    | Prefilled
    | Lost
    | Ended
    | Tick
    | Misforecast
    | Budgeted
)
