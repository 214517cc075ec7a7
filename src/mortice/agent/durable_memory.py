"""A durable store in memory, for tests: the same journal, and a crash wherever one is wanted."""

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from mortice.agent.durable import (
    RESUMABLE,
    Bodies,
    Cancelled,
    Json,
    RunFailed,
    RunRecord,
    State,
    StepFailed,
    StepRecord,
    Suspended,
)
from mortice.specs.errors import NotFound, RequestError


class Crash(BaseException):
    """The process died. Nothing that was not written down remains."""


@dataclass
class _Run:
    kind: str
    payload: Json
    parent: str | None = None
    forked_from: str | None = None
    state: State = "running"
    output: Json = None
    error: str | None = None
    why: str | None = None  # it was put aside
    journal: dict[int, StepRecord] = field(default_factory=dict)
    inbox: dict[str, list[Json]] = field(default_factory=dict)
    task: "asyncio.Task[None] | None" = None
    created_s: float = field(default_factory=time.time)


@dataclass
class _Here:
    """Where a body is: its run, and the place in it that the next step takes."""

    run_id: str
    next: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))


class MemoryDurable:
    """`crash_at`: called before and after each step acts, with the run's id and its name; what it raises is a crash."""

    def __init__(self, crash_at: Callable[[str, str, str], None] = lambda run, step, when: None) -> None:
        self.bodies: Bodies = {}
        self.crash_at = crash_at
        self._runs: dict[str, _Run] = {}
        self._here: ContextVar[_Here] = ContextVar("here")

    @property
    def run_id(self) -> str:
        return self._here.get().run_id

    async def step(self, name: str, act: Callable[[], Awaitable[Json]]) -> Json:
        here = self._here.get()
        number, run = next(here.next), self._runs[here.run_id]
        if run.state in ("cancelled", "suspended"):
            raise Cancelled(here.run_id) if run.why is None else Suspended(run.why)
        if number not in run.journal:
            self.crash_at(here.run_id, name, "before")
            started, output, error = time.time(), None, None
            try:
                output = json.loads(json.dumps(await act(), allow_nan=False))
            except Suspended as raised:
                run.state, run.why = "suspended", raised.reason
                raise
            except Exception as raised:
                error = f"{type(raised).__name__}\0{raised}"
            self.crash_at(here.run_id, name, "after")
            run.journal[number] = StepRecord(
                number=number, name=name, output=output, error=error, started_s=started, ended_s=time.time()
            )
        record = run.journal[number]
        if record.name != name:
            raise AssertionError(
                f"step {number} was {record.name!r}, now it is {name!r}: the body is not deterministic"
            )
        if record.error is not None:
            kind, _, message = record.error.partition("\0")
            raise StepFailed(kind, message)
        return json.loads(json.dumps(record.output))

    async def sleep(self, seconds: float) -> None:
        async def until() -> Json:
            return time.time() + seconds

        await asyncio.sleep(max(await self.step("DBOS.sleep", until) - time.time(), 0))

    async def recv(self, topic: str, timeout_s: float) -> Json:
        run = self._runs[self.run_id]
        end = time.monotonic() + timeout_s

        async def take() -> Json:
            while not run.inbox.get(topic) and time.monotonic() < end:
                await asyncio.sleep(0.001)
            return run.inbox[topic].pop(0) if run.inbox.get(topic) else None

        return await self.step("DBOS.recv", take)

    async def spawn(self, kind: str, run_id: str, payload: Json) -> None:
        parent = self.run_id

        async def begin() -> Json:
            if run_id not in self._runs:
                self._runs[run_id] = _Run(kind, payload, parent=parent)
                self._go(run_id)

        await self.step(f"DBOS.spawn {run_id}", begin)

    async def join(self, run_id: str) -> Json:
        async def wait() -> Json:
            try:
                return [await self.result(run_id), None]
            except Suspended as error:
                raise _aside(run_id, error.reason) from error
            except (RunFailed, Cancelled) as error:
                return [None, str(error)]

        output, error = await self.step(f"DBOS.getResult {run_id}", wait)
        if error is not None:
            raise RunFailed(error)
        return output

    async def start(self, kind: str, run_id: str, payload: Json) -> None:
        if run_id in self._runs:
            raise RequestError(f"there is a run {run_id!r} already", param="id")
        self._runs[run_id] = _Run(kind, json.loads(json.dumps(payload)))
        self._go(run_id)

    async def resume(self, run_id: str) -> None:
        if run_id not in self._runs:
            raise NotFound(f"there is no run {run_id!r}", param="id")
        for other, run in list(self._runs.items()):
            if run.parent == run_id:
                await self.resume(other)
        run = self._runs[run_id]
        if run.state in RESUMABLE:
            run.state, run.why = "running", None
            self._go(run_id)

    async def fork(self, run_id: str, new_id: str, first_step: int) -> None:
        old = self._runs[run_id]
        kept = {number: record for number, record in old.journal.items() if number < first_step}
        self._runs[new_id] = _Run(old.kind, old.payload, forked_from=run_id, journal=kept)
        self._go(new_id)

    async def result(self, run_id: str) -> Json:
        run = self._runs[run_id]
        while run.task is None:
            await asyncio.sleep(0)
        await asyncio.wait({run.task})
        if not run.task.cancelled():
            error = run.task.exception()
            if isinstance(error, Crash):
                raise Crash(str(error))
        if run.state in ("cancelled", "suspended"):
            raise Cancelled(run_id) if run.why is None else Suspended(run.why)
        if run.error is not None:
            raise RunFailed(run.error)
        return run.output

    async def send(self, run_id: str, topic: str, message: Json) -> None:
        self._runs[run_id].inbox.setdefault(topic, []).append(message)

    async def cancel(self, run_id: str) -> None:
        self._runs[run_id].state, self._runs[run_id].why = "cancelled", None

    async def runs(self, *, kind: str | None = None, limit: int = 100) -> list[RunRecord]:
        found = [await self.find(run_id) for run_id in reversed(self._runs)]
        return [r for r in found if r is not None and kind in (None, r.kind)][:limit]

    async def find(self, run_id: str) -> RunRecord | None:
        run = self._runs.get(run_id)
        if run is None:
            return None
        return RunRecord(
            id=run_id,
            kind=run.kind,
            state=run.state,
            payload=run.payload,
            output=run.output,
            error=run.error or run.why,
            created_s=run.created_s,
            updated_s=time.time(),
            owner="memory",
            parent=run.parent,
            forked_from=run.forked_from,
        )

    async def children(self, run_id: str) -> list[RunRecord]:
        found = [await self.find(other) for other, run in self._runs.items() if run.parent == run_id]
        return [record for record in found if record is not None]

    async def steps(self, run_id: str) -> list[StepRecord]:
        return [record for _, record in sorted(self._runs[run_id].journal.items())]

    def _go(self, run_id: str) -> None:
        run = self._runs[run_id]
        run.task = asyncio.get_running_loop().create_task(self._body(run_id, run))

    async def _body(self, run_id: str, run: _Run) -> None:
        self._here.set(_Here(run_id))
        try:
            output = json.loads(json.dumps(await self.bodies[run.kind](run.payload)))
        except Cancelled:
            run.state = "cancelled" if run.why is None else "suspended"
        except Exception as error:
            run.state, run.error = "failed", str(error) or repr(error)
        else:
            run.state, run.output = "done", output


def _aside(run_id: str, reason: str) -> Suspended:
    return Suspended(f"the run {run_id} that it waits for is put aside: {reason}")
