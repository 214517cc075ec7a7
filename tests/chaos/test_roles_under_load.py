"""Roles change and workers come, go and die under load: no request is lost, no token differs, nothing leaks, and the log
of decisions replays to the same decisions.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mortice.cluster.api import Division
from mortice.cluster.live import LiveCluster
from mortice.models.fake import reference_tokens
from mortice.sched.actions import Start, Stop
from mortice.sched.controller import Decision
from mortice.sched.journal import replay
from mortice.sched.observation import Observation, Target
from mortice.specs.cluster import ClusterSpec
from mortice.specs.deployment import Deployment, EngineLimits, Transfer
from mortice.specs.errors import EngineError, RequestError, WrongState
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams
from mortice.specs.slo import SLO


def prompt_of(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 257) for _ in range(length)]


@asynccontextmanager
async def cluster(
    prefill: int, decode: int, *, log: Path | None = None, mode: str = "map", **control: Any
) -> AsyncIterator[LiveCluster]:
    deployment = Deployment(
        model="fake:",
        prefill=prefill,
        decode=decode,
        local_prefill_tokens=4,
        limits=EngineLimits(block_size=4, token_budget=64, max_num_seqs=16, kv_bytes=1 << 20),
        transfer=Transfer(mode=mode),
        cluster=ClusterSpec(**({"period_s": 3600.0} | control)),
    )
    deployment.check()
    live = LiveCluster(deployment, model_path="fake:", draft_model_path=None, threads=1, decision_log=log)
    await live.start()
    try:
        yield live
    finally:
        await live.stop(0)


async def ask(live: LiveCluster, name: str, prompt: list[int], count: int) -> list[int]:
    sampling = SamplingParams(max_tokens=count, temperature=0.0)
    tokens: list[int] = []
    async for delta in live.generate(Request(id=name, prompt_token_ids=prompt, sampling=sampling)):
        if delta.finish_reason == "error":
            raise EngineError(delta.error or "")
        tokens += delta.token_ids
    return tokens


async def at_rest(live: LiveCluster) -> None:
    for _ in range(200):
        answers = await live.call("check_integrity", {})
        if all(a["num_sequences"] == a["num_leases"] == a["num_fetching"] == 0 for a in answers.values()):
            assert all(a["num_free_blocks"] == a["num_blocks"] for a in answers.values())
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not at rest: {answers}")


class Load:
    """Clients that ask without a pause, and compare every answer with the reference."""

    def __init__(self, live: LiveCluster, num_clients: int, count: int = 30) -> None:
        self.live, self.count = live, count
        self.num_done = 0
        self._stop = asyncio.Event()
        self._clients = [asyncio.create_task(self._client(i)) for i in range(num_clients)]

    async def _client(self, number: int) -> None:
        serial = 0
        while not self._stop.is_set():
            serial += 1
            prompt = prompt_of(5 + (number * 7 + serial) % 40, number * 1000 + serial)
            text = await ask(self.live, f"c{number}-{serial}", prompt, self.count)
            assert text == reference_tokens(prompt, self.count)
            self.num_done += 1

    async def more(self, count: int) -> None:
        """Until so many more have been answered."""
        goal = self.num_done + count
        while self.num_done < goal:
            failed = [c for c in self._clients if c.done()]
            if failed:
                failed[0].result()
            await asyncio.sleep(0.02)

    async def end(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._clients)


@pytest.mark.parametrize("mode", ["map", "pull", "push"])
async def test_flips_under_load_lose_nothing_and_change_no_token(mode: str, tmp_path: Path) -> None:
    seed = 11
    print(f"seed {seed}")
    rng = random.Random(seed)
    log = tmp_path / "decisions.jsonl"
    async with cluster(2, 2, mode=mode, log=log) as live:
        load = Load(live, 6)
        await load.more(3)
        took = []
        for _ in range(12):
            worker = rng.choice(live.workers())
            role = rng.choice(["prefill", "decode", "mixed"])
            began = time.perf_counter()
            with suppress(WrongState):
                live.wear(worker.id, role)
            took.append(time.perf_counter() - began)
            await load.more(1)
        live.divide(Division(3, 1))
        assert sorted(w.role for w in live.workers()) == ["decode", "prefill", "prefill", "prefill"]
        await load.more(3)
        await load.end()
        await at_rest(live)
        assert sorted(took)[len(took) // 2] < 0.1  # nothing is loaded or moved
        assert not len(live.decisions.plane)
    again = replay(log)
    assert again.num_answers > 30
    assert not again.differences


async def test_the_last_that_decodes_keeps_its_role() -> None:
    async with cluster(1, 1) as live:
        prefill, decode = live.workers()
        with pytest.raises(WrongState):
            live.wear(decode.id, "prefill")
        with pytest.raises(WrongState):
            live.divide(Division(2, 0))
        with pytest.raises(RequestError):
            live.divide(Division(1, 2))
        live.wear(prefill.id, "decode")
        live.wear(decode.id, "prefill")
        assert [w.role for w in live.workers()] == ["decode", "prefill"]
        prompt = prompt_of(20, 1)
        assert await ask(live, "r", prompt, 9) == reference_tokens(prompt, 9)
        await at_rest(live)


def decision(*actions: Any) -> Decision:
    target = Target(1, 1)
    return Decision(
        at_s=0.0,
        seen=Observation(at_s=0.0, interval_s=1.0),
        demand=None,
        target=target,
        other=target,
        actions=list(actions),
        reason="told to",
    )


async def test_workers_start_and_drain_under_load() -> None:
    async with cluster(1, 1) as live:
        load = Load(live, 4)
        await load.more(2)
        live.decisions.plane.starting["decode"] += 1
        live._manager.carry_out(decision(Start("decode")))
        while len([w for w in live.workers() if w.state == "running"]) < 3:
            await load.more(1)
        first = next(w for w in live.workers() if w.role == "decode")
        plane = live.decisions.plane
        plane.fleet.drain(plane.fleet.workers[first.id])
        live._manager.carry_out(decision(Stop(first.id)))
        while any(w.id == first.id for w in live.workers()):
            await load.more(1)
        assert sorted(w.role for w in live.workers()) == ["decode", "prefill"]
        assert first.id not in plane.fleet.workers
        await load.more(2)
        await load.end()
        await at_rest(live)


async def test_flips_and_deaths_together() -> None:
    seed = 5
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with cluster(2, 2) as live:
        load = Load(live, 6)
        for _ in range(8):
            await load.more(1)
            worker = rng.choice(live.workers())
            if rng.random() < 0.5:
                with suppress(WrongState, RequestError):  # dead, or the last that decodes
                    live.wear(worker.id, rng.choice(["prefill", "decode", "mixed"]))
            elif worker.state == "running":
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        await load.more(4)
        await load.end()
        while any(w.state != "running" for w in live.workers()):
            await asyncio.sleep(0.05)
        await at_rest(live)
        assert len(live.workers()) == 4


async def test_a_worker_that_stalls_is_fenced_and_its_requests_go_on() -> None:
    async with cluster(1, 2, silence_s=1.5) as live:
        load = Load(live, 4)
        await load.more(2)
        victim = next(w for w in live.workers() if w.role == "decode")
        os.kill(victim.pid, signal.SIGSTOP)
        while any(w.id == victim.id for w in live.workers()):
            await asyncio.sleep(0.05)
        await load.more(4)
        await load.end()
        while any(w.state != "running" for w in live.workers()):
            await asyncio.sleep(0.05)
        await at_rest(live)


@pytest.mark.parametrize("policy", ["reactive", "dopd", "mortice"])
async def test_a_policy_works_on_live_workers_and_its_log_replays(policy: str, tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    control = {
        "policy": policy,
        "period_s": 0.2,
        "dwell_s": 0.4,
        "patience": 2,
        "max_gpus": 4,
        "start_s": 1.0,
        "slo": SLO(ttft_ms=1000.0, tpot_ms=200.0),
    }
    async with cluster(1, 1, log=log, **control) as live:
        load = Load(live, 4, count=12)
        async with asyncio.timeout(60):
            while not any(t.expected_rate or policy == "reactive" for t in live.roles().turns):
                await load.more(4)
        await load.end()
        assert live.roles().policy == policy
        assert len(live.workers()) <= 4
        if policy != "reactive":
            assert live.decisions.plane.setup.decode_times is not None
    again = replay(log)
    assert again.num_events > 50
    assert not again.differences
