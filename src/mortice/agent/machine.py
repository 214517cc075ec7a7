"""The sandbox of a run: its tools, and how it comes back after a crash with its variables and files.

Each call that changed the machine is one step of the journal and ends with a snapshot whose id is in the step's result:
journal and machine move by the same epoch. A machine that lives is attached to again, and a call that a crash interrupted
is sent again under its cell id, which the guest does not run twice. One that is gone is restored from the last snapshot
the journal has.
"""

import ast
import asyncio
import json
import mimetypes
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import msgspec

from mortice.agent.artifacts import Artifacts
from mortice.agent.spec_machine import Machine
from mortice.agent.tool import CallContext, Output, Tool, ToolError
from mortice.obs.log import Log
from mortice.sandbox import (
    Egress,
    GuestFileError,
    Limits,
    RunResult,
    Sandbox,
    SandboxLost,
    SandboxNotFound,
    SandboxSpec,
)
from mortice.sandbox.retention import JOURNALLED
from mortice.specs.errors import RequestError

_log = Log("agent")
MAX_TEXT_BYTES = 1 << 20
MAX_FILES = 2000
MAX_FILES_BYTES = 64 << 20
_LIST = """__import__('json').dumps([
 [[d + '/' + n, s.st_ctime_ns, s.st_size, s.st_mode]
  for top in ('/work', '/home/user', '/tmp', '/dev/shm') for d, ds, fs in __import__('os').walk(top)
  for n in ['.', *ds, *fs] for s in [__import__('os').lstat(d + '/' + n)]][:20000],
 sum(n.isdigit() for n in __import__('os').listdir('/proc'))])"""
Place = tuple[int, int, int]
"""Of a file: when it was last changed in any way (ns), its size, its mode."""


class Contents(msgspec.Struct, frozen=True):
    """What the guest's user can change on disk, and how many processes are alive. Asked of the guest, so advisory."""

    files: dict[str, Place]
    num_processes: int

    def changed(self, since: "Contents") -> tuple[str, ...]:
        """Paths under /work that came, went or changed."""
        paths = {*self.files, *since.files}
        found = {path for path in paths if self.files.get(path) != since.files.get(path)}
        return tuple(
            sorted(p.removeprefix("/work/") for p in found if p.startswith("/work/") and p[-2:] != "/.")
        )


class Boxes(Protocol):
    """What is used of `mortice.sandbox.Sandboxes`."""

    async def create(self, spec: SandboxSpec, *, name: str | None = None, keep: bool = False) -> Sandbox: ...

    async def attach(self, name: str) -> Sandbox: ...

    async def restore(self, snapshot_id: str, *, name: str | None = None, keep: bool = False) -> Sandbox: ...


class SandboxTools:
    """A source of tools for one run. `last_epoch` gives the snapshot that the run's history ends with."""

    def __init__(
        self,
        boxes: Boxes,
        run_id: str,
        machine: Machine,
        artifacts: Artifacts,
        last_epoch: Callable[[], str | None],
    ) -> None:
        self._boxes = boxes
        self._name = box_name(run_id)
        self._machine = machine
        self._artifacts = artifacts
        self._last_epoch = last_epoch
        self._box: Sandbox | None = None
        self._seen: Contents | None = None
        self._turn = asyncio.Lock()
        self._notices: list[str] = []

    async def refresh(self) -> None:
        pass

    def drain(self) -> list[str]:
        notices, self._notices = self._notices, []
        return notices

    def tools(self) -> list[Tool]:
        made = [
            self._tool("run_python", _PYTHON, {"code": {"type": "string"}}, self._run_python),
            self._tool(
                "run_command",
                "Run a shell command in the sandbox, in /work. Gives its output and exit code.",
                {"command": {"type": "string"}},
                self._run_command,
            ),
            self._tool(
                "write_file",
                "Write a text file in the sandbox; paths are under /work.",
                {"path": {"type": "string"}, "text": {"type": "string"}},
                self._write_file,
            ),
            self._tool(
                "read_file", "Read a text file of the sandbox.", {"path": {"type": "string"}}, self._read_file
            ),
            self._tool(
                "keep_file",
                "Bring a file out of the sandbox, a plot or a report, so that the user gets it.",
                {"path": {"type": "string"}},
                self._keep_file,
            ),
        ]
        return made

    def _tool(self, name: str, text: str, properties: dict[str, Any], run: Any) -> Tool:
        async def alone(arguments: dict[str, Any], context: CallContext) -> Output:
            async with self._turn:
                return await self._guarded(run, arguments, context)

        return Tool(
            name=name,
            description=text,
            parameters={
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            },
            run=alone,
            effect="write_local",
            idempotency="keyed",
            timeout_s=self._machine.timeout_s + 30.0,
            origin="sandbox",
        )

    async def _guarded(self, run: Any, arguments: dict[str, Any], context: CallContext) -> Output:
        """A machine lost on the way is brought back once; the model is told what it lost."""
        try:
            box = await self._ensure()
            return await run(box, arguments, context)  # type: ignore[no-any-return]
        except SandboxLost as error:
            self._box = None
            _log.warning("a sandbox was lost", reason=error.reason)
            text = f"The sandbox died ({error.reason}): {error.message}"
            epoch = self._last_epoch()
            box = await self._ensure()
            back = (
                "it is back as it was before this call" if epoch else "a new, empty one has taken its place"
            )
            return Output(text=f"{text}; {back}.", is_error=True, strength=str(box.info.strength))

    async def _ensure(self) -> Sandbox:
        if self._box is not None:
            return self._box
        epoch = self._last_epoch()
        try:
            self._box = await self._boxes.attach(self._name)
        except (SandboxNotFound, SandboxLost):
            if epoch is None:
                self._box = await self._create()
            else:
                self._box = await self._boxes.restore(epoch, name=self._name, keep=True)
                self._notices.append("the sandbox was restored from its last snapshot")
        return self._box

    async def destroy(self) -> None:
        """End the machine, if there is one."""
        if self._box is not None:
            box, self._box = self._box, None
            await box.destroy()
            return
        try:
            box = await self._boxes.attach(self._name)
        except (SandboxNotFound, SandboxLost):
            return
        await box.destroy()

    async def _create(self) -> Sandbox:
        machine = self._machine
        spec = SandboxSpec(
            backend=machine.backend,  # type: ignore[arg-type]
            limits=Limits(memory_bytes=machine.memory_mib << 20, timeout_s=machine.timeout_s),
            egress=egress_of(machine),
        )
        box = await self._boxes.create(spec, name=self._name, keep=True)
        await copy_in(box, machine.files)
        return box

    async def _run_python(self, box: Sandbox, arguments: dict[str, Any], context: CallContext) -> Output:
        before = await self._contents(box, context.key + ":before") if self._seen is None else self._seen
        result = await box.run_cell(
            arguments["code"], cell_id=context.key, timeout_s=self._limit(context), output_cap=MAX_TEXT_BYTES
        )
        return await self._ended(box, result, before, context)

    async def _run_command(self, box: Sandbox, arguments: dict[str, Any], context: CallContext) -> Output:
        before = await self._contents(box, context.key + ":before") if self._seen is None else self._seen
        result = await box.exec(
            ["sh", "-c", arguments["command"]],
            cell_id=context.key,
            timeout_s=self._limit(context),
            output_cap=MAX_TEXT_BYTES,
        )
        return await self._ended(box, result, before, context, may_leave_no_trace=True)

    async def _ended(
        self,
        box: Sandbox,
        result: RunResult,
        before: Contents | None,
        context: CallContext,
        *,
        may_leave_no_trace: bool = False,
    ) -> Output:
        """With a snapshot, unless a command left no file changed and no process behind: then the last one holds."""
        after = self._seen = await self._contents(box, context.key + ":after")
        known = before is not None and after is not None
        same = may_leave_no_trace and known and before == after and self._last_epoch() is not None
        return Output(
            text=_text(result),
            is_error=not result.ok,
            sandbox_seconds=result.wall_s,
            changed=after.changed(before) if before is not None and after is not None else (),
            epoch=None if same else await box.snapshot(epoch=context.turn),
            strength=str(result.strength),
        )

    async def _write_file(self, box: Sandbox, arguments: dict[str, Any], context: CallContext) -> Output:
        path = _path(arguments["path"])
        try:
            await box.write(path, arguments["text"].encode())
        except GuestFileError as error:
            raise ToolError(error.message) from error
        self._seen = None
        started = time.monotonic()
        epoch = await box.snapshot(epoch=context.turn)
        return Output(
            text=f"wrote {len(arguments['text'].encode())} bytes to {path}",
            changed=(path.removeprefix("/work/"),),
            epoch=epoch,
            strength=str(box.info.strength),
            sandbox_seconds=time.monotonic() - started,
        )

    async def _read_file(self, box: Sandbox, arguments: dict[str, Any], context: CallContext) -> Output:
        try:
            data = await box.read(_path(arguments["path"]), max_bytes=MAX_TEXT_BYTES)
        except GuestFileError as error:
            raise ToolError(error.message) from error
        return Output(text=data.decode(errors="replace"), strength=str(box.info.strength))

    async def _keep_file(self, box: Sandbox, arguments: dict[str, Any], context: CallContext) -> Output:
        path = _path(arguments["path"])
        try:
            data = await box.read(path)
        except GuestFileError as error:
            raise ToolError(error.message) from error
        media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        file = self._artifacts.put(path.rsplit("/", 1)[-1], data, media_type)
        text = f"kept {path}, {len(data)} bytes, as {file.uri}"
        return Output(text=text, files=(file,), strength=str(box.info.strength))

    async def _contents(self, box: Sandbox, cell_id: str) -> Contents | None:
        result = await box.run_cell(_LIST, cell_id=cell_id, timeout_s=10.0)
        if not result.ok or result.value is None:
            return None
        try:
            rows, num_processes = json.loads(ast.literal_eval(result.value))
            files = {str(path): (int(when), int(size), int(mode)) for path, when, size, mode in rows}
            return Contents(files, int(num_processes))
        except (ValueError, SyntaxError, TypeError):
            return None

    def _limit(self, context: CallContext) -> float:
        return max(min(self._machine.timeout_s, context.timeout_s - 5.0), 1.0)


_PYTHON = (
    "Run Python in the sandbox. Variables and imports live on from call to call; files are in /work; there is no "
    "network. Gives what is printed and the value of the last expression."
)


def egress_of(machine: Machine) -> Egress:
    if not machine.allow and not machine.secrets:
        return Egress()
    return Egress(mode="allowlist", allow=machine.allow, secrets=machine.secrets)


async def copy_in(box: Sandbox, files: dict[str, str]) -> None:
    """Copy files and whole folders of this machine into a sandbox. RequestError if one cannot be read or is too large."""
    pairs = await asyncio.to_thread(_pairs, files)
    folders = sorted({str(PurePosixPath(inside).parent) for inside, _ in pairs} - {"/work"})
    if folders:
        made = await box.exec(["mkdir", "-p", *folders], cell_id="copy-in-folders")
        if not made.ok:
            raise RequestError(f"files: {made.stderr.strip()}", param="sandbox")
    for inside, here in pairs:
        await box.write(inside, await asyncio.to_thread(here.read_bytes))


def _pairs(files: dict[str, str]) -> list[tuple[str, Path]]:
    pairs = []
    for inside, name in files.items():
        here = Path(name)
        if here.is_dir():
            found = sorted(path for path in here.rglob("*") if path.is_file())
            pairs += [(f"{_path(inside)}/{path.relative_to(here).as_posix()}", path) for path in found]
        elif here.is_file():
            pairs.append((_path(inside), here))
        else:
            raise RequestError(f"files: there is no file or folder {name}", param="sandbox")
    size = sum(path.stat().st_size for _, path in pairs)
    if len(pairs) > MAX_FILES or size > MAX_FILES_BYTES:
        raise RequestError(
            f"files: {len(pairs)} files with {size >> 20} MiB; at most {MAX_FILES} and {MAX_FILES_BYTES >> 20} MiB",
            param="sandbox",
        )
    return pairs


def box_name(run_id: str) -> str:
    return JOURNALLED + "".join(c if c.isalnum() or c in "-_" else "-" for c in run_id)


def _path(path: str) -> str:
    return path if path.startswith("/") else f"/work/{path}"


def _text(result: RunResult) -> str:
    parts = [result.stdout.rstrip("\n")]
    if result.stderr.strip():
        parts.append(f"[stderr]\n{result.stderr.rstrip()}")
    if result.value is not None:
        parts.append(result.value)
    if result.error is not None:
        parts.append(result.error.traceback.rstrip() or f"{result.error.type}: {result.error.message}")
    if result.failure is not None:
        parts.append(f"[{result.failure.reason}] {result.failure.message} {result.failure.remedy}".rstrip())
    elif result.exit_code not in (0, None):
        parts.append(f"[exit code {result.exit_code}]")
    return "\n".join(part for part in parts if part) or "(no output)"
