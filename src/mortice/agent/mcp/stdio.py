"""A stdio server as a child process: frames bounded, its own process group, nothing of our environment but what was named.

The SDK's own transport holds a line in memory however long it grows, and sends stderr to ours; this one does neither.
"""

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import mcp_types as types
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage

from mortice.specs.errors import RequestError

_GRACE_S = 2.0
_STDERR_LINES = 50


class StdioServer:
    """`connect()` starts the process and is the SDK's transport. `stderr` has its last lines, for when it fails."""

    def __init__(
        self,
        command: str,
        args: tuple[str, ...],
        *,
        env: dict[str, str],
        cwd: str | None,
        max_frame_bytes: int,
    ) -> None:
        self._argv = (command, *args)
        self._env = get_default_environment() | env
        self._cwd = cwd
        self._max = max_frame_bytes
        self.stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self.pid: int | None = None

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple]:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._env,
                cwd=self._cwd,
                limit=self._max,
                start_new_session=True,
            )
        except OSError as error:
            raise RequestError(
                f"{self._argv[0]} cannot be started: {error.strerror}", param="mcpServers"
            ) from error
        self.pid = process.pid
        # Unbuffered: a server that floods us is not read faster than its messages are taken.
        to_session, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        from_session, to_server = anyio.create_memory_object_stream[SessionMessage](0)
        tasks = [
            asyncio.create_task(self._read(process, to_session)),
            asyncio.create_task(self._write(process, to_server)),
            asyncio.create_task(self._listen(process)),
        ]
        try:
            yield from_server, from_session
        finally:
            with anyio.CancelScope(shield=True):
                from_server.close()
                from_session.close()
                await _stop(process)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for stream in (to_session, to_server):
                    stream.close()

    async def _read(self, process: asyncio.subprocess.Process, out: anyio.abc.ObjectSendStream) -> None:
        assert process.stdout is not None
        async with out:
            while True:
                try:
                    line = await process.stdout.readline()
                except ValueError:  # the line is longer than the limit
                    self.stderr.append(f"a frame of more than {self._max} bytes: the server is let go")
                    return
                if not line:
                    return
                try:
                    message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    # Servers that log to stdout are many: what is no message is kept as a log line.
                    self.stderr.append("stdout: " + line[:300].decode(errors="replace").strip())
                    continue
                try:
                    await out.send(SessionMessage(message))
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return

    async def _write(
        self, process: asyncio.subprocess.Process, messages: anyio.abc.ObjectReceiveStream
    ) -> None:
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError, anyio.ClosedResourceError):
            async for item in messages:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(text.encode() + b"\n")
                await process.stdin.drain()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:
                continue
            if not line:
                return
            self.stderr.append(line[:500].decode(errors="replace").rstrip())


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Close its input, wait, then end the whole group: a server's children are not left behind."""
    assert process.stdin is not None
    process.stdin.close()
    await _ended(process, _GRACE_S)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        if await _group_gone(process, _GRACE_S):
            break
    # `wait` would also wait for pipes that a server that was let go has filled and nobody reads.
    process._transport.close()  # type: ignore[attr-defined]


async def _ended(process: asyncio.subprocess.Process, seconds: float) -> None:
    for _ in range(int(seconds / 0.02)):
        if process.returncode is not None:
            return
        await asyncio.sleep(0.02)


async def _group_gone(process: asyncio.subprocess.Process, seconds: float) -> bool:
    for _ in range(int(seconds / 0.02)):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        await asyncio.sleep(0.02)
    return False
