"""The fakes keep the promises of the interfaces they stand in for."""

import asyncio

import pytest

from mortice.specs.errors import EngineError, Overloaded, WrongState
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams
from mortice.testing import FakeClock, FakeCluster, fixed


async def started(**settings) -> FakeCluster:
    cluster = FakeCluster(**settings)
    await cluster.start()
    return cluster


def request(n: int = 1, **sampling) -> Request:
    return Request(id="r1", prompt_token_ids=[5, 6, 7], sampling=SamplingParams(**sampling), n=n)


async def test_echo_until_max_tokens():
    cluster = await started()
    deltas = [d async for d in cluster.generate(request(max_tokens=4))]
    assert [t for d in deltas for t in d.token_ids] == [5, 6, 7, 5]
    assert deltas[-1].finish_reason == "length"
    assert cluster.num_in_flight() == 0
    assert cluster.cancelled == []


async def test_fixed_ends_with_eos_for_each_sequence():
    cluster = await started(script=fixed([9, 8]), tokens_per_delta=8)
    deltas = [d async for d in cluster.generate(request(n=2, max_tokens=16, logprobs=2))]
    assert [(d.index, d.token_ids, d.finish_reason, d.stop_token_id) for d in deltas] == [
        (0, [9, 8, 2], "stop", 2),
        (1, [9, 8, 2], "stop", 2),
    ]
    assert len(deltas[0].logprobs) == 3


async def test_closing_the_iterator_is_recorded():
    cluster = await started()
    stream = cluster.generate(request(max_tokens=100))
    await anext(stream)
    assert cluster.num_in_flight() == 1
    await stream.aclose()
    assert cluster.num_in_flight() == 0
    assert cluster.cancelled == ["r1"]


async def test_failures_can_be_injected():
    cluster = await started()
    cluster.failures.append(Overloaded("full"))
    with pytest.raises(Overloaded):
        await anext(cluster.generate(request()))
    cluster.fail_after = (2, EngineError("lost"))
    stream = cluster.generate(request())
    assert [(await anext(stream)).token_ids, (await anext(stream)).token_ids] == [[5], [6]]
    with pytest.raises(EngineError):
        await anext(stream)
    cluster.fail_after = None
    cluster.error_delta_after = 1
    deltas = [d async for d in cluster.generate(request())]
    assert deltas[-1].finish_reason == "error"
    assert deltas[-1].error


async def test_states_follow_verbs():
    cluster = await started()
    await cluster.call("sleep", {})
    with pytest.raises(WrongState):
        await anext(cluster.generate(request()))
    await cluster.call("wake", {})
    answer = await cluster.call("update_weights", {"path": "x", "version": 7})
    assert set(answer) == {"prefill-0", "decode-0"}
    assert cluster.model.weight_version == 7


async def test_happenings_are_fed():
    cluster = await started()
    feed = cluster.happenings()
    first = asyncio.ensure_future(anext(feed))
    await asyncio.sleep(0)
    assert [d async for d in cluster.generate(request(max_tokens=1))]
    assert (await first).kind == "queued"
    await feed.aclose()


async def test_clock_wakes_sleepers_in_order():
    clock = FakeClock()
    woken = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleeper(s)) for s in (3.0, 1.0, 2.0)]
    await asyncio.sleep(0)
    clock.advance(2.0)
    await asyncio.sleep(0)
    assert woken == [1.0, 2.0]
    clock.advance(1.0)
    await asyncio.gather(*tasks)
    assert clock() == 3.0
