"""Starts and ends worker processes: what a launcher is, and the one for processes of this host."""

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Protocol

import msgspec

from mortice.cluster.nurseries import new_line
from mortice.engine.config import MAX_ORDER, Began, Ended, Order, WorkerConfig, decode_from_nursery
from mortice.specs.errors import RequestError


class Body(Protocol):
    """A worker process wherever it runs. `pid` is that of its own host; `returncode` None while it runs."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int:
        """Its exit code, negative for a signal, once it is gone. Whoever gave it up (`kill`) need not wait for a host
        that cannot be reached."""

    def kill(self) -> None:
        """End it at once, whatever it does; nothing happens if it is gone."""


class Launcher(Protocol):
    """A place where workers can be started; the same workers everywhere."""

    host: str  # its name; "" for this one

    async def start(self, config: WorkerConfig) -> Body:
        """Start a worker; its `Hello` comes when it is ready. Raises MorticeError where none can be started."""

    @property
    def is_alive(self) -> bool:
        """False once nothing can be started here any more."""

    async def close(self) -> None:
        """Give back what the launcher itself holds; its workers have ended."""


class LocalBody:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)


CLOSE_S = 10.0  # for workers that were killed to be gone, and for those that are being forked


class LocalLauncher:
    """Workers are forked from this process's nursery (engine/nursery.py), and end when this process or the launcher ends."""

    host = ""
    is_alive = True

    def __init__(self) -> None:
        self._line: socket.socket | None = None
        self._starting: dict[str, asyncio.Future[LocalBody]] = {}
        self._bodies: dict[str, LocalBody] = {}

    async def start(self, config: WorkerConfig) -> LocalBody:
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        order = msgspec.json.encode(Order(config, environment, os.getcwd()))
        if len(order) > MAX_ORDER:
            raise RequestError(
                f"a worker's configuration of {len(order)} bytes is too long", param="deployment"
            )
        if self._line is None:
            self._line = new_line()
            asyncio.get_running_loop().add_reader(self._line, self._hear)
        began: asyncio.Future[LocalBody] = asyncio.get_running_loop().create_future()
        self._starting[config.worker_id] = began
        with contextlib.suppress(OSError):  # the nursery is gone: `_hear` finds that too
            socket.send_fds(self._line, [order], [1, 2])
        return await asyncio.shield(began)  # whoever waits may be cancelled; the worker comes all the same

    async def close(self) -> None:
        """End what still runs, what is just starting too."""
        if self._line is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*self._starting.values())
                bodies = list(self._bodies.values())
                for body in bodies:
                    body.kill()
                await asyncio.gather(*(body.wait() for body in bodies))
        if self._line is not None:
            asyncio.get_running_loop().remove_reader(self._line)
            self._line.close()
            self._line = None

    def _hear(self) -> None:
        assert self._line is not None
        try:
            data = self._line.recv(MAX_ORDER)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._lose()
            return
        match decode_from_nursery(data):
            case Began(worker_id, pid):
                body = self._bodies[worker_id] = LocalBody(pid)
                self._starting.pop(worker_id).set_result(body)
            case Ended(worker_id, code):
                self._bodies.pop(worker_id).end(code)

    def _lose(self) -> None:
        """The nursery died and all its workers with it; the next start makes another."""
        assert self._line is not None
        asyncio.get_running_loop().remove_reader(self._line)
        self._line.close()
        self._line = None
        for began in self._starting.values():
            began.set_result(LocalBody(0))
            self._bodies[f"unborn-{id(began)}"] = began.result()
        self._starting.clear()
        for body in self._bodies.values():
            body.end(-signal.SIGKILL)
        self._bodies.clear()


async def end(body: Body, grace_s: float) -> None:
    """Wait for a worker that was told to stop; kill it if it does not."""
    try:
        await asyncio.wait_for(body.wait(), grace_s)
    except TimeoutError:
        body.kill()
        await body.wait()


def oom_kills() -> int:
    """Processes of this machine that the kernel has killed for want of memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
