"""Workers of another host: they join over TCP with a token, and a host that is cut off is fenced.

The other host is a network namespace with a mount namespace of its own, so that it shares neither the network nor the shared
memory of this one; its link has the delay and rate of a real one where the kernel can shape it (tc netem, or tbf). Where
namespaces are not allowed, the tests that need them are skipped, and say why.
"""

import asyncio
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mortice.cluster.api import WorkerInfo
from mortice.cluster.live import LiveCluster
from mortice.models.fake import reference_tokens
from mortice.sched.actions import Start
from mortice.sched.controller import Decision
from mortice.sched.observation import Observation, Target
from mortice.specs.cluster import ClusterSpec
from mortice.specs.deployment import Deployment, EngineLimits, Transfer
from mortice.specs.errors import EngineError
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams

SILENCE_S = 60.0  # until a host that says nothing is given up: long, for tests share a busy machine
CUT_S = 8.0


def prompt_of(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 257) for _ in range(length)]


async def ask(live: LiveCluster, name: str, prompt: list[int], count: int) -> list[int]:
    tokens: list[int] = []
    sampling = SamplingParams(max_tokens=count, temperature=0.0)
    async for delta in live.generate(Request(id=name, prompt_token_ids=prompt, sampling=sampling)):
        if delta.finish_reason == "error":
            raise EngineError(delta.error or "")
        tokens += delta.token_ids
    return tokens


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.05)


def running(live: LiveCluster, host: str) -> list[WorkerInfo]:
    return [w for w in live.workers() if w.host == host and w.state == "running"]


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(secrets.token_hex(32) + "\n")
    return path


@asynccontextmanager
async def server(listen: str, token: str, *, silence_s: float = SILENCE_S) -> AsyncIterator[LiveCluster]:
    deployment = Deployment(
        model="fake:",
        prefill=1,
        decode=1,
        local_prefill_tokens=4,
        limits=EngineLimits(block_size=4, token_budget=64, max_num_seqs=16, kv_bytes=1 << 20),
        transfer=Transfer(listen=listen.rpartition(":")[0]),
        cluster=ClusterSpec(period_s=3600.0, silence_s=silence_s),
    )
    live = LiveCluster(
        deployment,
        model_path="fake:",
        draft_model_path=None,
        threads=1,
        workers_listen=listen,
        join_token=token,
    )
    await live.start()
    try:
        yield live
    finally:
        await live.stop(0)


def agent_command(joined_at: str, token_file: Path, *options: str) -> list[str]:
    base = [sys.executable, "-m", "mortice", "worker", "--join", joined_at, "--token-file", str(token_file)]
    return [*base, *options]


async def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


@pytest.mark.slow
async def test_a_host_joins_serves_and_leaves(token_file: Path) -> None:
    async with server("127.0.0.1:0", token_file.read_text().strip()) as live:
        process = await asyncio.create_subprocess_exec(
            *agent_command(
                live.joined_at, token_file, "--name", "far", "--role", "decode", "--max-workers", "2"
            )
        )
        try:
            await until(lambda: bool(running(live, "far")))
            # One more prefill worker is wanted: it starts over there, where a decode worker has no partner yet.
            live.decisions.plane.starting["prefill"] += 1
            live._manager.carry_out(
                Decision(
                    at_s=0.0,
                    seen=Observation(at_s=0.0, interval_s=1.0),
                    demand=None,
                    target=Target(2, 2),
                    other=Target(2, 2),
                    actions=[Start("prefill")],
                    reason="told to",
                )
            )
            await until(lambda: len(running(live, "far")) == 2)
            assert [w.role for w in live.workers() if w.host] == ["decode", "prefill"]
            near = next(w for w in live.workers() if w.role == "decode" and not w.host)
            live.wear(near.id, "prefill")  # from here on the joined worker decodes everything
            for i in range(4):
                prompt = prompt_of(12 + 9 * i, i)
                assert await ask(live, f"r{i}", prompt, 20) == reference_tokens(prompt, 20)
            live.wear(near.id, "decode")
        finally:
            await end(process)
        await until(lambda: not any(w.host for w in live.workers()))
        assert await ask(live, "after", prompt_of(30, 9), 9) == reference_tokens(prompt_of(30, 9), 9)


@pytest.mark.slow
async def test_who_does_not_know_the_token_does_not_get_in(token_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(secrets.token_hex(32))
    async with server("127.0.0.1:0", token_file.read_text().strip()) as live:
        stranger = await asyncio.create_subprocess_exec(
            *agent_command(live.joined_at, other, "--name", "evil")
        )
        friend = await asyncio.create_subprocess_exec(
            *agent_command(live.joined_at, token_file, "--name", "far")
        )
        try:
            await until(lambda: bool(running(live, "far")))
            assert {w.host for w in live.workers()} == {"", "far"}
            assert stranger.returncode is None  # it goes on asking, and is not answered
        finally:
            await end(stranger)
            await end(friend)


def test_a_worker_that_nobody_could_reach_is_refused(token_file: Path) -> None:
    answer = subprocess.run(
        agent_command("10.1.2.3:7000", token_file), capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 2
    assert "--listen" in answer.stderr


# -- another host ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """A veth pair between this namespace and that of the other host."""

    namespace: str
    near_device: str
    near: str
    far: str
    shaped: str = ""  # by which queueing discipline; "": the kernel has none

    def num_shaped_bytes(self) -> int:
        """What went out to the other host through the discipline."""
        told = subprocess.run(
            ("tc", "-s", "-j", "qdisc", "show", "dev", self.near_device), capture_output=True, check=True
        )
        return sum(q["bytes"] for q in json.loads(told.stdout) if q["kind"] == self.shaped)

    def cut(self) -> None:
        sh("ip", "link", "set", self.near_device, "down")

    def mend(self) -> None:
        sh("ip", "link", "set", self.near_device, "up")

    def inside(self, command: list[str]) -> list[str]:
        """The command in the other host: its network, and shared memory of its own."""
        mount = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "unshare", "-m", "sh", "-c", mount, "sh", *command]


def sh(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def shape(link: Link, far_device: str) -> str:
    """A delay and a rate where the kernel has netem, a rate where it has a token bucket, else nothing: answers which."""
    shaped = ""
    shapes = ("netem delay 2ms rate 1gbit", "tbf rate 1gbit burst 128kb latency 20ms")
    for where, device in (((), link.near_device), (("-n", link.namespace), far_device)):
        for how in shapes:
            try:
                sh("tc", *where, "qdisc", "add", "dev", device, "root", *how.split())
                shaped = how.split()[0]
                break
            except OSError as error:
                print(f"no {how.split()[0]} here: {error}")
    return shaped


@pytest.fixture
def link() -> Iterator[Link]:
    if os.geteuid() or not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("a second host needs root, ip and tc")
    tag = secrets.token_hex(3)
    octet = random.SystemRandom().randrange(1, 250)
    made = Link(f"mortice-{tag}", f"mo{tag}a", f"10.213.{octet}.1", f"10.213.{octet}.2")
    far_device = f"mo{tag}b"
    try:
        sh("ip", "netns", "add", made.namespace)
        sh("ip", "link", "add", made.near_device, "type", "veth", "peer", "name", far_device)
        sh("ip", "link", "set", far_device, "netns", made.namespace)
        sh("ip", "addr", "add", f"{made.near}/30", "dev", made.near_device)
        sh("ip", "link", "set", made.near_device, "up")
        far = ("ip", "-n", made.namespace)
        sh(*far, "addr", "add", f"{made.far}/30", "dev", far_device)
        sh(*far, "link", "set", far_device, "up")
        sh(*far, "link", "set", "lo", "up")
        sh("unshare", "-m", "true")
        made = replace(made, shaped=shape(made, far_device))
    except OSError as error:
        subprocess.run(["ip", "netns", "del", made.namespace], capture_output=True)
        subprocess.run(["ip", "link", "del", made.near_device], capture_output=True)
        pytest.skip(f"no second host here: {error}")
    yield made
    subprocess.run(["ip", "link", "del", made.near_device], capture_output=True)
    subprocess.run(["ip", "netns", "del", made.namespace], capture_output=True)


@pytest.mark.timeout(300)
async def test_a_host_that_is_cut_off_is_fenced_and_comes_back(link: Link, token_file: Path) -> None:
    async with server(f"{link.near}:0", token_file.read_text().strip(), silence_s=CUT_S) as live:
        options = ("--name", "far", "--listen", link.far, "--threads", "1")
        process = await asyncio.create_subprocess_exec(
            *link.inside(agent_command(live.joined_at, token_file, *options))
        )
        try:
            await until(lambda: bool(running(live, "far")))
            near = next(w for w in live.workers() if w.role == "decode" and not w.host)
            live.wear(near.id, "prefill")  # KV crosses the link from now on
            prompts = [prompt_of(20 + 7 * i, i) for i in range(4)]
            for i, prompt in enumerate(prompts):
                assert await ask(live, f"calm-{i}", prompt, 20) == reference_tokens(prompt, 20)
            answers = await live.call("check_integrity", {}, running(live, "far")[0].id)
            assert next(iter(answers.values()))["num_received"] >= 4  # fetched, not read in place
            assert not link.shaped or link.num_shaped_bytes() > 0
            live.wear(near.id, "mixed")  # somebody must be left when the link is gone
            asked = [
                asyncio.create_task(ask(live, f"cut-{i}", prompt, 200)) for i, prompt in enumerate(prompts)
            ]
            await asyncio.sleep(0.2)
            lost = {w.id for w in running(live, "far")}
            link.cut()
            for prompt, answer in zip(prompts, await asyncio.gather(*asked), strict=True):
                assert answer == reference_tokens(prompt, 200)
            await until(lambda: not any(w.host for w in live.workers()))
            link.mend()
            await until(lambda: bool(running(live, "far")))
            assert lost.isdisjoint(w.id for w in live.workers())
            live.wear(near.id, "prefill")
            assert await ask(live, "back", prompts[0], 20) == reference_tokens(prompts[0], 20)
        finally:
            link.mend()
            await end(process)
