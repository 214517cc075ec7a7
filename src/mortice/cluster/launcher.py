"""Starts and ends worker processes on this host."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec

from mortice.engine.config import WorkerConfig


class LocalLauncher:
    """Each worker is a child process that ends when this process ends."""

    async def start(self, config: WorkerConfig) -> asyncio.subprocess.Process:
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
        return process

    async def end(self, process: asyncio.subprocess.Process, grace_s: float) -> None:
        """Wait for a worker that was told to stop; kill it if it does not."""
        try:
            await asyncio.wait_for(process.wait(), grace_s)
        except TimeoutError:
            kill(process)
            await process.wait()


def kill(process: asyncio.subprocess.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except ProcessLookupError:
        return  # already gone


def oom_kills() -> int:
    """Processes of this machine that the kernel has killed for want of memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
