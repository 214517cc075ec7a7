"""The loops on a clock that jumps: no test here waits."""

import asyncio
import selectors

import pytest

from mortice.bench.load import Job, closed_loop, open_loop


class JumpingLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing can run, and then at once."""

    def __init__(self):
        self.at = 0.0
        real = selectors.SelectSelector()
        select = real.select

        def jump(timeout=None):
            self.at += timeout or 0.0
            return select(0)

        real.select = jump
        super().__init__(real)

    def time(self):
        return self.at


class LoopClock:
    def now(self):
        return asyncio.get_running_loop().time()

    async def sleep_until(self, instant_s):
        await asyncio.sleep(max(0.0, instant_s - self.now()))


CLOCK = LoopClock()


def run(coroutine):
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(coroutine)


def jobs(*times):
    return [Job(i, b"", 1, 1, t) for i, t in enumerate(times)]


def sender(seconds):
    async def send(job, timeline):
        timeline.sent_s = CLOCK.now()
        await asyncio.sleep(seconds[job.index] if isinstance(seconds, list) else seconds)
        timeline.ended_s = CLOCK.now()

    return send


def test_a_closed_loop_keeps_its_concurrency():
    ended = []
    loaded = run(
        closed_loop(
            jobs(0, 0, 0, 0, 0), sender([3.0, 1.0, 1.0, 1.0, 1.0]),
            concurrency=2, clock=CLOCK, stop_after_s=None, on_end=ended.append,
        )
    )  # fmt: skip
    assert [(t.sent_s, t.ended_s) for t in loaded.timelines] == [
        (0.0, 3.0), (0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0),
    ]  # fmt: skip
    assert loaded.ended_s == 4.0
    assert len(ended) == 5
    assert not loaded.stopped_early


def test_an_open_loop_does_not_wait_for_answers():
    loaded = run(
        open_loop(jobs(0.0, 0.5, 1.0), sender(10.0), clock=CLOCK, stop_after_s=None, on_end=lambda t: None)
    )
    assert [t.sent_s for t in loaded.timelines] == [0.0, 0.5, 1.0]
    assert [t.due_s for t in loaded.timelines] == [0.0, 0.5, 1.0]
    assert loaded.ended_s == 11.0


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_time_runs_out_for_new_requests_only(kind):
    common = {"clock": CLOCK, "stop_after_s": 2.0, "on_end": lambda t: None}
    if kind == "open":
        loaded = run(open_loop(jobs(0.0, 1.0, 2.0, 3.0), sender(5.0), **common))
    else:
        loaded = run(closed_loop(jobs(0, 0, 0, 0), sender(1.0), concurrency=1, **common))
    assert len(loaded.timelines) == 2
    assert all(t.ended_s > 0 for t in loaded.timelines)
    assert loaded.stopped_early


def test_fewer_jobs_than_users():
    loaded = run(
        closed_loop(
            jobs(0), sender(1.0), concurrency=8, clock=CLOCK, stop_after_s=None, on_end=lambda t: None
        )
    )
    assert len(loaded.timelines) == 1
    assert not loaded.stopped_early
