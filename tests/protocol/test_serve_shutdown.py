"""How a server goes down: gently on the first signal, at once on the second."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from mortice.serve.options import ServeOptions
from mortice.serve.run import bind
from mortice.specs.deployment import Admission

ASK = {"prompt": "Hi"}


async def test_sigterm_drains(serve):
    async with serve(signals=True, pace_s=0.02) as server:
        running = asyncio.create_task(server.http.post("/v1/completions", json=ASK))
        await server.until(lambda: server.edge.num_in_flight == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        await server.until(lambda: server.edge.draining)
        refused = await server.http.post("/v1/completions", json=ASK)
        assert refused.status_code == 503
        assert (await running).json()["choices"][0]["text"] == "Hello, world"
        await server.task
        with pytest.raises(httpx.ConnectError):
            await server.http.get("/health")


async def test_a_drain_has_a_limit(serve):
    options = ServeOptions(admission=Admission(drain_s=0.1))
    async with serve(signals=True, options=options, first_token_s=3600) as server:
        running = asyncio.create_task(server.http.post("/v1/completions", json=ASK))
        await server.until(lambda: server.edge.num_in_flight == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        await server.task
        assert server.cluster.num_in_flight() == 0
        assert len(server.cluster.cancelled) == 1
        await asyncio.gather(running, return_exceptions=True)


async def test_a_second_signal_ends_at_once(serve):
    async with serve(signals=True, first_token_s=3600) as server:
        running = asyncio.create_task(server.http.post("/v1/completions", json=ASK))
        await server.until(lambda: server.edge.num_in_flight == 1)
        os.kill(os.getpid(), signal.SIGINT)
        await server.until(lambda: server.edge.draining)
        os.kill(os.getpid(), signal.SIGINT)
        await server.task
        running.cancel()
        assert (await asyncio.gather(running, return_exceptions=True))[0] is not None


def test_a_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="cannot listen on"):
        bind("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_the_start_leaves_nothing(smollm2, number):
    options = ("--model", "smollm2", "--port", "0", "--dtype", "float32")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mortice", "serve", *options, stderr=asyncio.subprocess.PIPE
    )
    workers: list[psutil.Process] = []
    while not any(segments_of(worker) for worker in workers):  # a worker has its memory, and is not ready yet
        assert process.returncode is None
        await asyncio.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert b"Traceback" not in said
    assert not any(worker.is_running() for worker in workers)
    assert not any(segments_of(worker) for worker in workers)


def segments_of(worker: psutil.Process) -> list[Path]:
    return list(Path("/dev/shm").glob(f"mortice-*.{worker.pid}.*"))
