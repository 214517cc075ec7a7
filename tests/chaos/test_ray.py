"""The same workers under Ray: kept by actors in a placement group, replaced when they or their actors die."""

import asyncio
import os
import random
import signal

import pytest

from mortice.cluster.live import LiveCluster
from mortice.models.fake import reference_tokens
from mortice.specs.cluster import ClusterSpec
from mortice.specs.deployment import Deployment, EngineLimits
from mortice.specs.errors import EngineError
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams

pytest.importorskip("ray", reason="the ray extra is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def ask(live: LiveCluster, name: str, prompt: list[int], count: int) -> list[int]:
    sampling = SamplingParams(max_tokens=count, temperature=0.0)
    tokens: list[int] = []
    async for delta in live.generate(Request(id=name, prompt_token_ids=prompt, sampling=sampling)):
        if delta.finish_reason == "error":
            raise EngineError(delta.error or "")
        tokens += delta.token_ids
    return tokens


async def test_workers_under_ray_serve_flip_die_and_come_back() -> None:
    from mortice.cluster.ray_launcher import RayLauncher

    deployment = Deployment(
        model="fake:",
        prefill=1,
        decode=1,
        local_prefill_tokens=4,
        threads=1,
        limits=EngineLimits(block_size=4, token_budget=64, max_num_seqs=16, kv_bytes=1 << 20),
        cluster=ClusterSpec(period_s=3600.0),
        launcher="ray",
    )
    live = LiveCluster(
        deployment,
        model_path="fake:",
        draft_model_path=None,
        threads=1,
        launcher=RayLauncher(None, room=2, threads=1, listen="127.0.0.1"),
    )
    rng = random.Random(3)
    prompts = [[rng.randrange(1, 257) for _ in range(10 + 5 * i)] for i in range(6)]

    async def all_right(tag: str) -> None:
        texts = await asyncio.gather(*(ask(live, f"{tag}-{i}", p, 30) for i, p in enumerate(prompts)))
        assert texts == [reference_tokens(p, 30) for p in prompts]

    try:
        await live.start()
        assert {w.host for w in live.workers()} == {"ray"}
        await all_right("first")
        prefill, decode = live.workers()
        live.wear(prefill.id, "decode")
        live.wear(decode.id, "prefill")
        await all_right("flipped")
        asked = asyncio.create_task(all_right("killed"))
        os.kill(prefill.pid, signal.SIGKILL)
        await asked
        while any(w.state != "running" for w in live.workers()):
            await asyncio.sleep(0.1)
        assert prefill.id not in {w.id for w in live.workers()}
        await all_right("back")
    finally:
        await live.stop(0)
