"""What the edge may ask of a cluster. `serve` is written against this and tested with `mortice.testing.FakeCluster`."""

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

import msgspec

from mortice.specs.messages import WorkerStats
from mortice.specs.request import Delta, Request

Role = Literal["prefill", "decode", "mixed"]


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    role: str  # prefill | decode | mixed
    pid: int  # on its own host
    state: str  # starting | running | draining | paused | asleep | updating | dead
    host: str = ""  # where it runs; "" for the server's own
    stats: WorkerStats | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the edge must know of the model in order to admit requests."""

    name: str  # served name
    max_context: int
    vocab_size: int
    eos_token_ids: list[int]
    adapters: list[str]
    weight_version: int


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """Something the dashboard shows as it happens."""

    t_s: float  # seconds since the epoch
    kind: str  # queued | prefill | handoff | decode | finish | abort | error | worker | role | route
    request_id: str = ""
    worker_id: str = ""
    peer_id: str = ""  # handoff: the decode worker
    num_tokens: int = 0
    detail: str = ""


class Division(msgspec.Struct, frozen=True):
    """So many workers of each role."""

    prefill: int = 0
    decode: int = 0
    mixed: int = 0


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of the control loop, as the dashboard shows it."""

    t_s: float  # seconds since the start of the cluster
    rate: float  # requests a second that arrived
    expected_rate: float | None  # what the forecast is ready for; None where nothing is forecast
    prompt_mean: float  # tokens, of arrivals
    output_mean: float  # tokens, of what ended
    met: float | None  # share of what ended within the SLO; None if nothing did
    now: Division  # workers that took requests
    wanted: Division
    other: Division  # the best not taken
    actions: list[str]
    reason: str
    distrusted: list[str]  # forecasts that were not believed, and why


class Roles(msgspec.Struct, frozen=True, kw_only=True):
    """Who wears what, and who decides it."""

    policy: str
    division: Division
    starting: int
    draining: int
    most_workers: int | None  # None: their number stays
    ttft_ms: float | None  # what the policy works for
    tpot_ms: float | None
    period_s: float
    workers: list[WorkerInfo]
    turns: list[Turn]  # oldest first


class Cluster(Protocol):
    @property
    def model(self) -> ModelInfo: ...

    async def start(self) -> None:
        """Start the workers and return when every role can serve. Raises MorticeError if one cannot start."""

    async def stop(self, drain_s: float) -> None:
        """Let running requests end for up to `drain_s`, then end the workers."""

    def generate(self, request: Request) -> AsyncIterator[Delta]:
        """Run one request; yields deltas of all its sequences as they come and ends when each has a finish_reason.

        Closing the iterator cancels the request and frees everything it holds within a step. Raises RequestError for
        one that can never run (longer than a pool), Unavailable, WrongState or EngineError.
        """

    def end_sequence(self, request_id: str, index: int) -> None:
        """Nobody reads this sequence of a running request any more, its text having met a stop string: it ends with finish
        reason "abort" and frees what it holds within a step, its siblings go on. Unknown ones are ignored, for they may
        have ended by themselves. Only a sequence that gave a token may be ended.
        """

    def num_in_flight(self) -> int: ...

    def ready(self) -> bool:
        """True while at least one worker can take a new request."""

    def workers(self) -> list[WorkerInfo]: ...

    async def call(self, verb: str, args: dict[str, Any], worker_id: str | None = None) -> dict[str, dict]:
        """Run an admin verb on one worker or all: pause, resume, sleep, wake, update_weights, load_adapter,
        unload_adapter, reset_prefix_cache, check_integrity. Answers by worker id; raises WrongState or RequestError."""

    def roles(self) -> Roles: ...

    def wear(self, worker_id: str, role: Role) -> None:
        """Give a worker another role, from this instant on; what it has it finishes. Raises NotFound or WrongState."""

    def divide(self, division: Division) -> None:
        """Give the workers there are these roles, the least busy changing. Raises RequestError or WrongState."""

    def happenings(self) -> AsyncIterator[Happening]:
        """Live feed for the dashboard; a slow reader loses old entries, never blocks the cluster."""
