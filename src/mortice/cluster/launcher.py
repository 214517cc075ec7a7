"""Starts and ends worker processes: what a launcher is, and the one for processes of this host."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Protocol

import msgspec

from mortice.engine.config import WorkerConfig


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
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def kill(self) -> None:
        try:
            self._process.send_signal(signal.SIGKILL)
        except ProcessLookupError:
            return  # already gone


class LocalLauncher:
    """Each worker is a child process that ends when this process ends."""

    host = ""
    is_alive = True

    async def start(self, config: WorkerConfig) -> LocalBody:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(config.threads),
            "MKL_NUM_THREADS": str(config.threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mortice.engine.worker",
            config.worker_id,  # for the reader of a process list; the configuration comes on standard input
            stdin=asyncio.subprocess.PIPE,
            env=environment,
        )
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(config))
            await process.stdin.drain()
            process.stdin.close()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died before it read its configuration: whoever waits for the process will see that
        return LocalBody(process)

    async def close(self) -> None:
        return None


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
