"""The sandbox as an MCP server: Claude Desktop, an IDE or any other host gets a machine to run code in."""

import asyncio
import mimetypes
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import mcp_types as types
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.utilities.types import Image
from pydantic import BaseModel, Field

from mortice.agent.machine import Boxes
from mortice.agent.mcp.oauth import Auth, JwtVerifier, settings_of
from mortice.sandbox import RunResult, Sandbox, SandboxLost, SandboxNotFound, SandboxSpec
from mortice.specs.errors import MorticeError

MAX_OUTPUT_BYTES = 256 << 10
MAX_FILE_BYTES = 8 << 20
MAX_BOXES = 16
Name = Annotated[
    str, Field(description="Which sandbox; made at first use.", pattern="^[a-z0-9][a-z0-9-]{0,31}$")
]
Seconds = Annotated[float, Field(description="Wall time it may take.", gt=0, le=600)]


class Ran(BaseModel):
    ok: bool
    exit_code: int | None
    stdout: str
    stderr: str
    value: Annotated[str | None, Field(description="repr of the last expression")] = None
    error: str | None = None
    strength: Annotated[str, Field(description="The wall around the sandbox.")]


class SandboxServer:
    """`server` over boxes that must be open. One machine a name; all end with this process unless they were kept."""

    def __init__(self, boxes: Boxes, spec: SandboxSpec, *, auth: Auth | None = None) -> None:
        self._boxes = boxes
        self._spec = spec
        self._open: dict[str, Sandbox] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.server = MCPServer(
            "mortice-sandbox",
            instructions=(
                "Machines for code nobody trusts. run_python keeps variables between calls; files live in /work; there is "
                "no network. snapshot and fork copy a machine with everything that runs in it."
            ),
            token_verifier=JwtVerifier(auth) if auth else None,
            auth=settings_of(auth) if auth else None,
        )
        for act in (
            self.run_python,
            self.run_command,
            self.write_file,
            self.read_file,
            self.snapshot,
            self.restore,
            self.fork,
            self.destroy,
        ):
            read_only = act == self.read_file
            hints = types.ToolAnnotations(read_only_hint=read_only, open_world_hint=False)
            self.server.tool(annotations=hints)(act)

    async def close(self) -> None:
        """All at once: a host that hangs up waits two seconds and then kills."""
        boxes = list(self._open.values())
        self._open.clear()
        await asyncio.gather(*(box.destroy() for box in boxes), return_exceptions=True)

    async def run_python(
        self, code: str, ctx: Context, sandbox: Name = "default", timeout_s: Seconds = 60.0
    ) -> Ran:
        """Run Python in the sandbox. Variables and imports live on from call to call; files are in /work."""
        async with self._box(sandbox) as box:
            result = await box.run_cell(
                code, cell_id=uuid.uuid4().hex, timeout_s=timeout_s, output_cap=MAX_OUTPUT_BYTES
            )
        return _ran(result)

    async def run_command(
        self,
        argv: Annotated[
            list[str], Field(description="Program and arguments; no shell in between.", min_length=1)
        ],
        sandbox: Name = "default",
        stdin: str | None = None,
        timeout_s: Seconds = 60.0,
    ) -> Ran:
        """Run a program in the sandbox, in /work."""
        async with self._box(sandbox) as box:
            result = await box.exec(
                argv,
                cell_id=uuid.uuid4().hex,
                stdin=None if stdin is None else stdin.encode(),
                timeout_s=timeout_s,
                output_cap=MAX_OUTPUT_BYTES,
            )
        return _ran(result)

    async def write_file(self, path: str, text: str, sandbox: Name = "default") -> str:
        """Write a text file in the sandbox."""
        async with self._box(sandbox) as box:
            await box.write(_path(path), text.encode())
        return f"wrote {len(text.encode())} bytes to {_path(path)}"

    async def read_file(self, path: str, sandbox: Name = "default") -> str | Image:
        """Read a file of the sandbox: text as text, a picture as a picture."""
        async with self._box(sandbox) as box:
            data = await box.read(_path(path), max_bytes=MAX_FILE_BYTES)
        media_type = mimetypes.guess_type(path)[0] or ""
        if media_type in ("image/png", "image/jpeg", "image/gif", "image/webp"):
            return Image(data=data, format=media_type.removeprefix("image/"))
        return data.decode(errors="replace")

    async def snapshot(self, sandbox: Name = "default") -> str:
        """Keep the sandbox as it is now, memory and files; gives the snapshot's id."""
        async with self._box(sandbox) as box:
            return await box.snapshot()

    async def restore(self, snapshot: str, sandbox: Name) -> str:
        """Make a sandbox from a snapshot, under a name that is not in use."""
        if sandbox in self._open:
            raise ToolError(f"there is a sandbox {sandbox}; destroy it first or take another name")
        self._room()
        try:
            self._open[sandbox] = await self._boxes.restore(snapshot, name=self._named(sandbox))
        except MorticeError as error:
            raise ToolError(error.message) from error
        return f"{sandbox} is {snapshot}"

    async def fork(self, sandbox: Name, new: Name) -> str:
        """Copy a living sandbox with its memory and files under a new name."""
        if new in self._open:
            raise ToolError(f"there is a sandbox {new}")
        self._room()
        async with self._box(sandbox) as box:
            (outcome,) = await box.fork(1, names=[self._named(new)])
        if outcome.box is None:
            raise ToolError(f"it could not be forked: {outcome.error}")
        self._open[new] = outcome.box
        return f"{new} is a copy of {sandbox}"

    async def destroy(self, sandbox: Name = "default") -> str:
        """End a sandbox and everything in it."""
        box = self._open.pop(sandbox, None)
        if box is None:
            raise ToolError(f"there is no sandbox {sandbox}")
        await box.destroy()
        return f"{sandbox} is gone"

    @asynccontextmanager
    async def _box(self, name: str) -> AsyncIterator[Sandbox]:
        """A sandbox in one call's hands; what goes wrong with it is told to the model."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            try:
                yield await self._ensure(name)
            except (SandboxLost, SandboxNotFound) as error:
                self._open.pop(name, None)
                last = getattr(error, "last_snapshot", None)
                back = (
                    f"restore snapshot {last}, or go on with a new one"
                    if last
                    else "the next call makes a new one"
                )
                raise ToolError(f"the sandbox died: {error.message}; {back}") from error
            except MorticeError as error:
                raise ToolError(error.message) from error

    async def _ensure(self, name: str) -> Sandbox:
        if name not in self._open:
            self._room()
            self._open[name] = await self._boxes.create(self._spec, name=self._named(name))
        return self._open[name]

    def _room(self) -> None:
        if len(self._open) >= MAX_BOXES:
            raise ToolError(f"{MAX_BOXES} sandboxes are open; destroy one first")

    def _named(self, name: str) -> str:
        return f"mcp-{name}-{uuid.uuid4().hex[:8]}"


def _ran(result: RunResult) -> Ran:
    error = None
    if result.failure is not None:
        error = f"{result.failure.reason}: {result.failure.message} {result.failure.remedy}".strip()
    elif result.error is not None:
        error = result.error.traceback or f"{result.error.type}: {result.error.message}"
    return Ran(
        ok=result.ok,
        exit_code=result.exit_code,
        stdout=result.stdout,
        stderr=result.stderr,
        value=result.value,
        error=error,
        strength=str(result.strength),
    )


def _path(path: str) -> str:
    return path if path.startswith("/") else f"/work/{path}"
