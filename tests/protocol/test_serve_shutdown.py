"""How a server goes down: gently on the first signal, at once on the second."""

import asyncio
import os
import signal
import socket

import httpx
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
