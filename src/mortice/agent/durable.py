"""What a durable run may ask of the store below it; agents and workflows know nothing more of it.

A run is a coroutine, its body, that is run again from the top after a crash. Everything it learns from outside comes
through `step`, whose result is written down before the body sees it: what is written is not done again. A step that a
crash interrupts is done again (at least once); the effect ledger and the cell ids of a sandbox make that harmless.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec

Json = Any  # None, bool, int, float, str, list and dict of them
Body = Callable[[Json], Awaitable[Json]]
State = Literal["running", "waiting", "done", "failed", "cancelled", "suspended"]
RESUMABLE = ("running", "suspended", "cancelled")


class Cancelled(Exception):
    """The run was cancelled; raised at its next step. Bodies let it pass."""


class Suspended(Cancelled):
    """The run is put aside: a step could not be done now. Nothing of the step was written, and `resume` does it again.
    Raised by what a step does, and by `step` and `result` in turn.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step as it was written down, at its place in the run. Times in seconds since the epoch."""

    number: int
    name: str
    output: Json
    error: str | None
    started_s: float
    ended_s: float


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run as the store knows it."""

    id: str
    kind: str  # agent | workflow
    state: State
    payload: Json
    output: Json
    error: str | None  # why it failed, or why it was put aside
    created_s: float
    updated_s: float
    owner: str | None  # the process that ran it last
    parent: str | None
    forked_from: str | None


class Durable(Protocol):
    """Inside a body: `run_id`, `step`, `sleep`, `recv`, `spawn`, `join`. Outside: the rest."""

    @property
    def run_id(self) -> str:
        """Of the run whose body asks. LookupError outside a body."""

    async def step(self, name: str, act: Callable[[], Awaitable[Json]]) -> Json:
        """Do `act` and write its result (JSON) down, or give what was written. An exception is written too, and raised
        as StepFailed whenever the body comes by; but Suspended puts the run aside and writes nothing.
        """

    async def sleep(self, seconds: float) -> None:
        """Sleep until seconds after the first time the body came here, across restarts."""

    async def recv(self, topic: str, timeout_s: float) -> Json:
        """The next message sent to this run under the topic; None when the time is over."""

    async def spawn(self, kind: str, run_id: str, payload: Json) -> None:
        """Begin another run as a child of this one."""

    async def join(self, run_id: str) -> Json:
        """Wait for a child's result. RunFailed if it failed or was cancelled; one that is put aside puts this run aside."""

    async def start(self, kind: str, run_id: str, payload: Json) -> None:
        """Begin a run in this process. RequestError if the id is taken."""

    async def resume(self, run_id: str) -> None:
        """Take over a run whose process is gone, and its children; a run that has ended is left alone.
        RequestError if there is none, WrongState if its process lives.
        """

    async def fork(self, run_id: str, new_id: str, first_step: int) -> None:
        """A new run that has the steps of the old one before `first_step` behind it and begins here."""

    async def result(self, run_id: str) -> Json:
        """Wait for the end. RunFailed with its error if it failed, Cancelled if it was cancelled, Suspended if a step of
        it could not be done now.
        """

    async def send(self, run_id: str, topic: str, message: Json) -> None: ...

    async def cancel(self, run_id: str) -> None: ...

    async def runs(self, *, kind: str | None = None, limit: int = 100) -> list[RunRecord]:
        """Latest first."""

    async def find(self, run_id: str) -> RunRecord | None: ...

    async def children(self, run_id: str) -> list[RunRecord]:
        """The runs that this one has begun."""

    async def steps(self, run_id: str) -> list[StepRecord]: ...


Bodies = Mapping[str, Body]


class StepFailed(Exception):
    """A step raised; `kind` is the name of the exception's type."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.message = message


class RunFailed(Exception):
    """The body of a run raised."""
