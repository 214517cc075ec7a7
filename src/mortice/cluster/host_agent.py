"""The agent of another host (`mortice worker --join`): asks a cluster for work, starts the workers it is told to, ends them
when it is told to or when it is cut off, and joins anew.

A host that was cut off fences itself: after `silence_s` without a word of the cluster, which has given it up by then, its
workers end. What they would still have said nobody listens to.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from mortice import __version__
from mortice.cluster.host_words import (
    PREFIX,
    FromHost,
    HostAlive,
    JoinHost,
    KillWorker,
    LaunchWorker,
    LeaveHost,
    Refusal,
    Rejoin,
    Welcome,
    WorkerEnded,
    decode_to_host,
    encode,
)
from mortice.cluster.launcher import Body, LocalLauncher
from mortice.engine.config import WorkerConfig
from mortice.specs.errors import RequestError
from mortice.transport.curve import arm_client
from mortice.transport.segment import sweep

log = logging.getLogger(__name__)

ALIVE_S = 1.0
ANSWER_S = 5.0  # a cluster that does not answer a JoinHost for so long is asked again

Adapt = Callable[[WorkerConfig], WorkerConfig]


class HostAgent:
    def __init__(
        self,
        *,
        cluster: str,
        token: str,
        host: str,
        num_workers: int,
        max_workers: int,
        role: str,
        adapt: Adapt,
    ) -> None:
        """`cluster`: HOST:PORT where it listens for workers. `adapt` puts this host's paths and limits into a worker's
        configuration; it may raise RequestError."""
        self._endpoint = f"tcp://{cluster}"
        self._token = token
        self._join = JoinHost(
            host=host, num_workers=num_workers, max_workers=max_workers, role=role, version=__version__
        )
        self._adapt = adapt
        self._launcher = LocalLauncher()
        self._shm_prefix = f"mortice-{secrets.token_hex(4)}"
        self._bodies: dict[str, Body] = {}
        self._tasks: set[asyncio.Task] = set()

    async def run(self) -> None:
        """Until cancelled. Raises RequestError where the cluster refuses."""
        context = zmq.asyncio.Context()
        try:
            while True:
                await self._session(context)
        finally:
            context.destroy(linger=500)

    async def _session(self, context: zmq.asyncio.Context) -> None:
        """One joining, from the first word until one side has given the other up."""
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, f"{PREFIX}{secrets.token_hex(8)}".encode())
        socket.setsockopt(zmq.LINGER, 500)
        arm_client(socket, self._token)
        socket.connect(self._endpoint)
        try:
            silence_s = await self._ask_in(socket)
            log.info("joined %s", self._endpoint)
            heard_s = said_s = time.monotonic()
            while True:
                if time.monotonic() - said_s >= ALIVE_S:
                    said_s = time.monotonic()
                    await self._say(socket, HostAlive())
                if not await socket.poll(int(ALIVE_S * 250)):
                    if time.monotonic() - heard_s > silence_s:
                        break
                    continue
                word = decode_to_host(await socket.recv())
                heard_s = time.monotonic()
                match word:
                    case LaunchWorker(config):
                        self._spawn(self._host_worker(socket, config))
                    case KillWorker(worker_id):
                        body = self._bodies.get(worker_id)
                        if body is not None:
                            body.kill()
                    case Rejoin():
                        log.warning("the cluster gave this host up: joining anew")
                        return
            log.warning("cut off from the cluster for %g s: ending its workers here", silence_s)
        finally:
            await self._say(socket, LeaveHost())
            await self._end_all()
            socket.close()

    async def _ask_in(self, socket: zmq.asyncio.Socket) -> float:
        while True:
            await self._say(socket, self._join)
            if not await socket.poll(int(ANSWER_S * 1000)):
                log.info("no answer from %s yet", self._endpoint)
                continue
            match decode_to_host(await socket.recv()):
                case Welcome(silence_s):
                    return silence_s
                case Refusal(reason):
                    raise RequestError(f"the cluster refuses: {reason}", param="join")

    async def _host_worker(self, socket: zmq.asyncio.Socket, given: WorkerConfig) -> None:
        code = 2
        try:
            config = msgspec.structs.replace(
                await asyncio.to_thread(self._adapt, given),  # it may have a model to fetch
                endpoint=self._endpoint,
                join_token=self._token,
                shm_prefix=self._shm_prefix,
            )
            body = await self._launcher.start(config)
            self._bodies[given.worker_id] = body
            log.info("worker %s runs as process %d", given.worker_id, body.pid)
            code = await body.wait()
            log.info("worker %s ended with code %d", given.worker_id, code)
        finally:
            self._bodies.pop(given.worker_id, None)
            sweep(self._shm_prefix, [body.pid for body in self._bodies.values()])
            if not socket.closed:
                await self._say(socket, WorkerEnded(given.worker_id, code))

    async def _end_all(self) -> None:
        while self._tasks:  # one may just be starting
            for body in list(self._bodies.values()):
                body.kill()
            await asyncio.wait(set(self._tasks), timeout=0.2)

    async def _say(self, socket: zmq.asyncio.Socket, word: FromHost) -> None:
        with contextlib.suppress(zmq.Again):  # nobody is connected: the silence will tell
            await socket.send(encode(word), zmq.NOBLOCK)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a worker could not be started: %s", task.exception())


def host_name() -> str:
    return os.uname().nodename
