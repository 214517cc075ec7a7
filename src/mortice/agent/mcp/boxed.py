"""A stdio server in a sandbox of its own: what it does, it does behind a wall, and every command, file and connection of
it is in the sandbox's audit log. It sees the files it was given and the hosts it was allowed, nothing of this machine.
"""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import mcp_types as types
from mcp.shared.message import SessionMessage

from mortice.agent.machine import Boxes, copy_in, egress_of
from mortice.agent.spec_machine import Machine
from mortice.sandbox import Limits, Sandbox, SandboxError, SandboxSpec
from mortice.specs.errors import MorticeError, RequestError

LIFE_S = 24 * 3600.0
MAX_OUTPUT_BYTES = 1 << 30  # of its whole life
_STARTED = 'echo "$0" >&2; exec "$@"'
_CALL = "mcp-server"


class BoxedServer:
    """Stands in for StdioServer: `connect()` is the SDK's transport, `stderr` has the last lines."""

    def __init__(
        self,
        command: str,
        args: tuple[str, ...],
        *,
        env: dict[str, str],
        machine: Machine,
        boxes: Callable[[], Awaitable[Boxes]],
        max_frame_bytes: int,
    ) -> None:
        self._argv = [command, *args]
        self._env = env
        self._machine = machine
        self._boxes = boxes
        self._max = max_frame_bytes
        self.stderr: deque[str] = deque(maxlen=50)
        self.box_id: str | None = None

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple]:
        box = await self._started_box()
        self.box_id = box.info.id
        lines = _Lines(self._max, self.stderr)
        running = asyncio.create_task(self._run(box, lines))
        to_session, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        from_session, to_server = anyio.create_memory_object_stream[SessionMessage](0)
        tasks = [
            running,
            asyncio.create_task(_pass_on(lines, to_session, self.stderr)),
            asyncio.create_task(_write(box, to_server)),
        ]
        try:
            await asyncio.wait(
                {running, asyncio.ensure_future(lines.started.wait())}, return_when="FIRST_COMPLETED"
            )
            yield from_server, from_session
        finally:
            with anyio.CancelScope(shield=True):
                from_server.close()
                from_session.close()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for stream in (to_session, to_server):
                    stream.close()
                with contextlib.suppress(MorticeError):
                    await box.destroy()

    async def _started_box(self) -> Sandbox:
        machine = self._machine
        spec = SandboxSpec(
            backend=machine.backend,  # type: ignore[arg-type]
            limits=Limits(memory_bytes=machine.memory_mib << 20, output_bytes=MAX_OUTPUT_BYTES),
            egress=egress_of(machine),
        )
        try:
            boxes = await self._boxes()
            box = await boxes.create(spec)
        except MorticeError as error:
            raise RequestError(
                f"no sandbox for {self._argv[0]}: {error.message}", param="mcpServers"
            ) from error
        try:
            await copy_in(box, machine.files)
            await self._must_be_there(box)
        except BaseException:
            await box.destroy()
            raise
        return box

    async def _must_be_there(self, box: Sandbox) -> None:
        program = self._argv[0]
        found = await box.exec(["sh", "-c", 'command -v -- "$1"', "sh", program], cell_id="is-there")
        if not found.ok:
            raise RequestError(
                f"the sandbox has no {program}: its image has Python and a shell, and no Node. Bring the program in by "
                "`files`, or run this server without `sandbox`",
                param="mcpServers",
            )

    async def _run(self, box: Sandbox, lines: "_Lines") -> None:
        """Until it ends; whatever ends it, the session hears that nothing more will come."""
        try:
            result = await box.exec(
                ["sh", "-c", _STARTED, lines.nonce, *self._argv],
                cell_id=_CALL,
                env=self._env or None,
                stdin=b"",
                timeout_s=LIFE_S,
                output_cap=1024,
                on_output=lines.hear,
            )
            if result.failure is not None:
                self.stderr.append(f"[{result.failure.reason}] {result.failure.message}")
            elif result.exit_code:
                self.stderr.append(f"it ended with exit code {result.exit_code}")
        except SandboxError as error:
            self.stderr.append(error.message)
        finally:
            lines.end()


class _Lines:
    """Bytes in, whole lines out. A line longer than `most`, or more than four of that size waiting, ends the server."""

    def __init__(self, most: int, stderr: deque[str]) -> None:
        self.nonce = secrets.token_hex(8)
        self.started = asyncio.Event()
        self._most = most
        self._stderr = stderr
        self._part = bytearray()
        self._errors = bytearray()
        self._ready: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._some = asyncio.Event()
        self._ended = False

    def hear(self, which: str, data: bytes) -> None:
        if self._ended:
            return
        if which == "stderr":
            self._errors += data
            *whole, rest = bytes(self._errors).split(b"\n")
            self._errors = bytearray(rest[-4096:])
            for line in whole:
                text = line[:500].decode(errors="replace").rstrip()
                if text == self.nonce:
                    self.started.set()
                else:
                    self._stderr.append(text)
            return
        self._part += data
        if b"\n" in data:
            *found, rest = bytes(self._part).split(b"\n")
            self._part = bytearray(rest)
            self._ready.extend(found)
            self._waiting_bytes += sum(map(len, found))
            self._some.set()
        if len(self._part) > self._most or any(len(line) > self._most for line in self._ready):
            self._stderr.append(f"a frame of more than {self._most} bytes: the server is let go")
            self.end(drop=True)
        elif self._waiting_bytes > 4 * self._most:
            self._stderr.append("more messages than can be taken: the server is let go")
            self.end(drop=True)

    def end(self, *, drop: bool = False) -> None:
        if drop:
            self._ready.clear()
            self._part.clear()
        self._ended = True
        self._some.set()

    async def next(self) -> bytes | None:
        """None: the server has ended or was let go."""
        while not self._ready:
            if self._ended:
                return None
            self._some.clear()
            await self._some.wait()
        line = self._ready.popleft()
        self._waiting_bytes -= len(line)
        return line


async def _pass_on(lines: _Lines, out: anyio.abc.ObjectSendStream, stderr: deque[str]) -> None:
    async with out:
        while (line := await lines.next()) is not None:
            try:
                message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
            except ValueError:
                stderr.append("stdout: " + line[:300].decode(errors="replace").strip())
                continue
            try:
                await out.send(SessionMessage(message))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return


async def _write(box: Sandbox, messages: anyio.abc.ObjectReceiveStream) -> None:
    with contextlib.suppress(anyio.ClosedResourceError, MorticeError):
        async for item in messages:
            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            await box.send_stdin(_CALL, text.encode() + b"\n")
