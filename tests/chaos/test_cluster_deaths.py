"""Workers die at every phase, under load: streams go on with the same tokens, nothing leaks, the dead are replaced."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from mortice.cluster.live import LiveCluster
from mortice.models.fake import reference_tokens
from mortice.specs.deployment import Deployment, EngineLimits, Transfer
from mortice.specs.errors import EngineError, MorticeError, RequestError, WrongState
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams


def prompt_of(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 257) for _ in range(length)]


def request_of(name: str, prompt: list[int], count: int, **more: Any) -> Request:
    sampling = SamplingParams(
        max_tokens=count, temperature=more.pop("temperature", 0.0), seed=more.pop("seed", 0)
    )
    return Request(id=name, prompt_token_ids=prompt, sampling=sampling, **more)


@asynccontextmanager
async def cluster(prefill: int = 1, decode: int = 1, **transfer: Any) -> AsyncIterator[LiveCluster]:
    deployment = Deployment(
        model="fake:",
        prefill=prefill,
        decode=decode,
        local_prefill_tokens=4,
        limits=EngineLimits(block_size=4, token_budget=64, max_num_seqs=16),
        transfer=Transfer(**transfer),
    )
    live = LiveCluster(deployment, model_path="fake:", draft_model_path=None, threads=1)
    await live.start()
    try:
        yield live
    finally:
        await live.stop(0)


async def ask(live: LiveCluster, request: Request) -> list[int]:
    tokens: list[int] = []
    async for delta in live.generate(request):
        if delta.finish_reason == "error":
            raise EngineError(delta.error or "")
        tokens += delta.token_ids
    return tokens


async def at_rest(live: LiveCluster) -> dict[str, dict]:
    """Wait until all is idle, then have every worker walk its books."""
    for _ in range(100):
        answers = await live.call("check_integrity", {})
        if all(a["num_sequences"] == a["num_leases"] == a["num_fetching"] == 0 for a in answers.values()):
            return answers
        await asyncio.sleep(0.05)
    raise AssertionError(f"not at rest: {answers}")


@pytest.mark.parametrize(
    ("prefill", "decode", "transfer"),
    [
        (0, 1, {}),
        (1, 1, {}),
        (1, 1, {"mode": "pull"}),
        (1, 1, {"mode": "push"}),
        (2, 3, {}),
        (1, 1, {"transport": "tcp"}),
        (1, 1, {"transport": "tcp", "mode": "push"}),
    ],
)
async def test_every_shape_gives_the_reference_text(prefill: int, decode: int, transfer: dict) -> None:
    async with cluster(prefill, decode, **transfer) as live:
        prompts = [prompt_of(3 + 2 * i, i) for i in range(20)]
        texts = await asyncio.gather(*(ask(live, request_of(f"r{i}", p, 12)) for i, p in enumerate(prompts)))
        for prompt, text in zip(prompts, texts, strict=True):
            assert text == reference_tokens(prompt, 12)
        answers = await at_rest(live)
        assert all(a["num_free_blocks"] == a["num_blocks"] for a in answers.values())
        assert sum(a["num_received"] for a in answers.values()) >= (15 if prefill and transfer else 0)
        assert sum(a["num_in_place"] for a in answers.values()) >= (15 if prefill and not transfer else 0)


@pytest.mark.parametrize("mode", ["map", "pull", "push"])
async def test_kill_any_worker_at_any_time_in_a_loop(mode: str) -> None:
    seed = 7
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with cluster(2, 2, mode=mode) as live:
        done = 0
        stop = asyncio.Event()

        async def client(number: int) -> None:
            nonlocal done
            serial = 0
            while not stop.is_set():
                serial += 1
                prompt = prompt_of(5 + (number * 7 + serial) % 40, number * 1000 + serial)
                text = await ask(live, request_of(f"c{number}-{serial}", prompt, 30))
                assert text == reference_tokens(prompt, 30)
                done += 1

        async def killer() -> None:
            for _ in range(12):
                await asyncio.sleep(rng.uniform(0.02, 0.5))
                victims = [w for w in live.workers() if w.state == "running"]
                if victims:
                    with suppress(ProcessLookupError):  # dead already, and not yet noticed
                        os.kill(rng.choice(victims).pid, signal.SIGKILL)
            await asyncio.sleep(0.5)  # until the last death is noticed too
            await until(lambda: done > 20)
            stop.set()

        async with asyncio.timeout(100):
            await asyncio.gather(killer(), *(client(i) for i in range(8)))
            await until(lambda: all(w.state == "running" for w in live.workers()))
        answers = await at_rest(live)
        assert all(a["num_free_blocks"] == a["num_blocks"] for a in answers.values())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


async def test_a_client_that_leaves_frees_everything() -> None:
    async with cluster(1, 1) as live:
        for cut in range(6):
            stream = live.generate(request_of(f"r{cut}", prompt_of(30, cut), 500, n=2))
            for _ in range(cut):
                await anext(stream)
            await stream.aclose()
        answers = await at_rest(live)
        assert all(a["num_free_blocks"] == a["num_blocks"] for a in answers.values())
        assert live.num_in_flight() == 0


async def test_sampled_text_survives_the_death_of_its_worker() -> None:
    async with cluster(1, 1) as live:

        def make(name: str) -> Request:
            return request_of(name, prompt_of(12, 1), 60, temperature=1.0, seed=5, n=2)

        expected: dict[int, list[int]] = {0: [], 1: []}
        async for delta in live.generate(make("calm")):
            expected[delta.index] += delta.token_ids
        got: dict[int, list[int]] = {0: [], 1: []}
        killed = False
        async for delta in live.generate(make("rough")):
            got[delta.index] += delta.token_ids
            if len(got[0]) >= 10 and not killed:
                killed = True
                os.kill(next(w.pid for w in live.workers() if w.role == "decode"), signal.SIGKILL)
        assert got == expected


async def test_an_ended_sequence_is_gone_within_a_step_and_its_siblings_get_their_text() -> None:
    async with cluster(1, 1) as live:

        def make(name: str) -> Request:
            return request_of(name, prompt_of(20, 3), 40, temperature=1.0, seed=5, n=3)

        expected: dict[int, list[int]] = {0: [], 1: [], 2: []}
        async for delta in live.generate(make("calm")):
            expected[delta.index] += delta.token_ids
        got: dict[int, list[int]] = {0: [], 1: [], 2: []}
        reasons = {}
        async for delta in live.generate(make("cut")):
            got[delta.index] += delta.token_ids
            if delta.finish_reason is not None:
                reasons[delta.index] = delta.finish_reason
            if len(got[1]) == 5:
                live.end_sequence("cut", 1)
        assert got[0] == expected[0]
        assert got[2] == expected[2]
        assert got[1] == expected[1][: len(got[1])]
        assert reasons[1] == "abort"
        answers = await at_rest(live)
        assert all(a["num_free_blocks"] == a["num_blocks"] for a in answers.values())


async def test_verbs_reach_every_worker_and_outlive_a_restart() -> None:
    async with cluster(1, 1) as live:
        await live.call("update_weights", {"path": "fake:4", "version": 4})
        os.kill(next(w.pid for w in live.workers() if w.role == "decode"), signal.SIGKILL)
        await asyncio.sleep(0.1)
        assert await ask(live, request_of("r", prompt_of(12, 1), 9)) == reference_tokens(
            prompt_of(12, 1), 9, version=4
        )
        await live.call("sleep", {})
        with pytest.raises(WrongState):
            await ask(live, request_of("s", prompt_of(12, 1), 9))
        await live.call("wake", {})
        assert await ask(live, request_of("t", prompt_of(12, 1), 9)) == reference_tokens(
            prompt_of(12, 1), 9, version=4
        )


async def test_a_model_that_is_not_there_is_one_clear_error() -> None:
    live = LiveCluster(
        Deployment(model="/nonexistent"), model_path="/nonexistent", draft_model_path=None, threads=1
    )
    try:
        with pytest.raises(RequestError, match="no such file"):
            await live.start()
    finally:
        await live.stop(0)


async def test_bad_requests_are_refused_before_a_worker_sees_them() -> None:
    async with cluster(0, 1) as live:
        with pytest.raises(RequestError, match="tokens"):
            await ask(live, request_of("long", prompt_of(5000, 1), 9))
        with pytest.raises(MorticeError, match="adapter"):
            await ask(live, request_of("adapter", prompt_of(5, 1), 9, adapter="none"))
