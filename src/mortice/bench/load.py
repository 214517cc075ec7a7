"""Sending: who sends the next request, and when. Knows nothing of HTTP."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from mortice.bench.http import now
from mortice.bench.timeline import Timeline


class Clock(Protocol):
    def now(self) -> float: ...

    async def sleep_until(self, instant_s: float) -> None: ...


class RealClock:
    def now(self) -> float:
        return now()

    async def sleep_until(self, instant_s: float) -> None:
        await asyncio.sleep(max(0.0, instant_s - now()))


@dataclass(frozen=True, slots=True)
class Job:
    """One request to be sent. `at_s` counts from the start of the run; a closed loop does not look at it."""

    index: int
    body: bytes
    prompt_len: int
    output_len: int
    at_s: float = 0.0
    leaves_after_s: float | None = None  # the client hangs up so long after sending; None: it stays

    def timeline(self) -> Timeline:
        return Timeline(index=self.index, prompt_len=self.prompt_len, output_len=self.output_len)


Send = Callable[[Job, Timeline], Awaitable[None]]  # writes the outcome into the timeline, failures too
OnEnd = Callable[[Timeline], None]


@dataclass(slots=True)
class LoadRun:
    """What was sent and what became of it."""

    timelines: list[Timeline]  # of every issued request, in the order of issue
    started_s: float
    ended_s: float
    stopped_early: bool  # the time ran out before all jobs were issued


async def closed_loop(
    jobs: Iterable[Job],
    send: Send,
    *,
    concurrency: int,
    clock: Clock,
    stop_after_s: float | None,
    on_end: OnEnd,
) -> LoadRun:
    """`concurrency` users, each sending its next request as soon as the last one ended."""
    queue = iter(jobs)
    timelines: list[Timeline] = []
    started = clock.now()
    stopped = False

    async def user() -> None:
        nonlocal stopped
        for job in queue:
            if stop_after_s is not None and clock.now() - started >= stop_after_s:
                stopped = True
                return
            timelines.append(timeline := job.timeline())
            await send(job, timeline)
            on_end(timeline)

    async with asyncio.TaskGroup() as users:
        for _ in range(concurrency):
            users.create_task(user())
    return LoadRun(timelines, started, clock.now(), stopped)


async def open_loop(
    jobs: Iterable[Job], send: Send, *, clock: Clock, stop_after_s: float | None, on_end: OnEnd
) -> LoadRun:
    """Each job at its own instant, however many are still running."""
    timelines: list[Timeline] = []
    started = clock.now()
    stopped = False

    async def one(job: Job, timeline: Timeline) -> None:
        await send(job, timeline)
        on_end(timeline)

    async with asyncio.TaskGroup() as running:
        for job in jobs:
            if stop_after_s is not None and job.at_s >= stop_after_s:
                stopped = True
                break
            due = started + job.at_s
            await clock.sleep_until(due)
            timelines.append(timeline := job.timeline())
            timeline.due_s = due
            running.create_task(one(job, timeline))
    return LoadRun(timelines, started, clock.now(), stopped)
