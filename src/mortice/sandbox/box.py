"""One sandbox, driven: a machine, the line to its agent, its lease and its chain of the audit log."""

import asyncio
import base64
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from mortice.obs.audit import AuditLog
from mortice.sandbox.channel import Channel, Message
from mortice.sandbox.contract import (
    MIB,
    WAIT_S,
    BoxInfo,
    GuestFileError,
    OnOutput,
    RunResult,
    SandboxBusy,
    SandboxError,
    SandboxLost,
    Strength,
)
from mortice.sandbox.failures import result_of
from mortice.sandbox.home import write_whole
from mortice.sandbox.machine import Backend, Machine
from mortice.sandbox.meter import CpuMeter
from mortice.sandbox.parking import Parking
from mortice.sandbox.record import BoxRecord, Lease
from mortice.sandbox.trace import span
from mortice.sandbox.workspace import Tree, read_listing

HELLO_TIMEOUT_S = 30.0
EMULATED_HELLO_TIMEOUT_S = 240.0  # a kernel boots in software, on a machine that does other things
FILE_TIMEOUT_S = 30.0
MAX_CODE = 512 * 1024  # of one request line
SMALL_FILE = 256 * 1024  # goes in one message
MAX_FILE = 256 * MIB


class Box:
    """The `Sandbox` of every back end whose machine has an agent. Made by `Sandboxes`."""

    def __init__(
        self,
        record: BoxRecord,
        place: Path,
        machine: Machine,
        backend: Backend,
        lease: Lease,
        audit: AuditLog,
        on_gone: Callable[["Box"], None],
        save_snapshot: Callable[["Box", int | None, float], Any],
        fork_snapshot: Callable[["Box", int, list[str] | None, float], Any],
    ) -> None:
        self.record = record
        self.place = place
        self.machine = machine
        self.backend = backend
        self._lease = lease
        self._audit = audit
        self._on_gone = on_gone
        self._save_snapshot = save_snapshot
        self._fork_snapshot = fork_snapshot
        self._channel: Channel | None = None
        self._pidfd = -1
        self._requests = 0
        self._lost: SandboxLost | None = None
        self._meter = CpuMeter(machine.cpu_seconds)
        self.saving = asyncio.Lock()
        self.tree: Tree | None = None  # of the workspace at the last snapshot, as far as we know
        self._cells_may_start = asyncio.Event()
        self._cells_may_start.set()
        self.changed = True  # since the last snapshot; set by every run and write
        self._parking = Parking(machine, idle=self._is_idle, quiet=self._is_quiet)
        self.gate: Any = None  # the egress proxy's end, where there is one

    @property
    def info(self) -> BoxInfo:
        r = self.record
        return BoxInfo(
            id=r.id, name=r.name, backend=r.backend, strength=self.backend.strength, state=r.state,
            generation=r.generation, created_at=r.created_at, parent_snapshot=r.parent_snapshot,
            last_snapshot=r.last_snapshot, keep=r.keep,
        )  # fmt: skip

    @property
    def num_running(self) -> int:
        """Cells and commands whose result is still awaited here."""
        return self._channel.num_waiting if self._channel else 0

    # ---- coming and going

    async def connect(self, *, renew: bool) -> Message:
        """Meet the agent; with `renew`, give this instance its own randomness, clock and names before anything runs."""
        read_fd, write_fd = self.machine.open_channel()
        self._channel = Channel(read_fd, write_fd, on_net=self.gate.take if self.gate else None)
        if self.gate:
            self.gate.attach(self._channel)
        self._watch()
        emulated = self.backend.strength is Strength.EMULATED
        timeout_s = EMULATED_HELLO_TIMEOUT_S if emulated else HELLO_TIMEOUT_S
        hello = await self._channel.hello(timeout_s)
        if renew:
            await self._renew(timeout_s)
        self.record.state = "ready"
        self._parking.later()
        return hello

    async def _renew(self, timeout_s: float) -> None:
        message = {
            "op": "renew",
            "generation": f"{self.record.id}.{self.record.generation}.{secrets.token_hex(8)}",
            "seed": base64.b64encode(secrets.token_bytes(64)).decode(),
            "hostname": self.record.id,
            "now": time.time(),
        }
        await self._ask(message, timeout_s=timeout_s)

    def _watch(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.machine.pid)
        except ProcessLookupError:
            asyncio.get_running_loop().call_soon(self._died)
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._died)

    def _died(self) -> None:
        self._unwatch()
        if self._lost is None and self.record.state not in ("destroyed",):
            reason, why = self.machine.cause_of_death()
            self._lost = SandboxLost(
                f"{self.record.name}: {why}", reason=reason, last_snapshot=self.record.last_snapshot
            )
            self.record.state = "lost"
            self._note("lost", reason=reason, why=why)
            self.save()
            if self._channel is not None:
                self._channel.fail(self._lost)

    def _unwatch(self, *, leave_parked: bool = False) -> None:
        self._parking.end(leave_parked=leave_parked)
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def save(self) -> None:
        write_whole(self.place / "box.json", self.record)

    async def abort(self) -> None:
        """A start that failed: end what there is, without a word to the guest."""
        self.record.state = "destroyed"
        self._unwatch()
        if self._channel is not None:
            self._channel.close()
        if self.gate:
            await self.gate.close()
        await self.machine.remove()

    async def destroy(self) -> None:
        """See `Sandbox.destroy`."""
        if self.record.state == "destroyed":
            return
        await self._recorded("destroy")
        self.record.state = "destroyed"
        self._unwatch()
        if self._channel is not None:
            self._channel.close()
        if self.gate:
            await self.gate.close()
        try:
            await self.machine.remove()
        finally:
            self._note("destroyed")
            shutil.rmtree(self.place, ignore_errors=True)
            self._lease.release()
            self._on_gone(self)

    async def close(self) -> None:
        """See `Sandbox.close`."""
        if not self.record.keep:
            await self.destroy()
            return
        left_parked = self.record.state == "ready" and self._lost is None and await self.park_if_quiet()
        self._unwatch(leave_parked=True)
        if self._channel is not None:
            self._channel.close()
        if self.gate:
            await self.gate.close()
        self.save()
        self._note("released", parked=left_parked)
        self._lease.release()
        self._on_gone(self)

    # ---- running

    async def run_cell(
        self,
        code: str,
        *,
        cell_id: str,
        timeout_s: float | None = None,
        output_cap: int = MIB,
        on_output: OnOutput | None = None,
    ) -> RunResult:
        """See `Sandbox.run_cell`."""
        if len(code.encode("utf-8", "surrogatepass")) > MAX_CODE:
            raise SandboxError(
                f"a cell holds at most {MAX_CODE >> 10} KiB of code; write more to a file and import it"
            )
        digest = hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest()
        await self._cells_may_start.wait()
        intent = self._intent("cell", cell_id=cell_id, code=code, code_sha256=digest)
        with span("cell", self.info, cell=cell_id) as ended:
            result = await self._run(
                {"op": "cell", "code": code}, intent, cell_id, timeout_s, output_cap, on_output
            )
            ended(result)
        return result

    async def exec(
        self,
        argv: list[str],
        *,
        cell_id: str,
        cwd: str = "/work",
        env: dict[str, str] | None = None,
        stdin: bytes | None = None,
        timeout_s: float | None = None,
        output_cap: int = MIB,
        on_output: OnOutput | None = None,
    ) -> RunResult:
        """See `Sandbox.exec`."""
        if not argv or sum(len(a) for a in argv) > MAX_CODE:
            raise SandboxError(
                f"a command has one word or more and at most {MAX_CODE >> 10} KiB of arguments"
            )
        intent = self._intent(
            "exec", cell_id=cell_id, argv=argv, cwd=cwd, env=env or {}, has_stdin=stdin is not None
        )
        request: Message = {
            "op": "exec",
            "argv": argv,
            "cwd": cwd,
            "env": env,
            "stdin": None if stdin is None else "",
        }
        with span("exec", self.info, cell=cell_id) as ended:
            result = await self._run(request, intent, cell_id, timeout_s, output_cap, on_output, stdin=stdin)
            ended(result)
        return result

    async def _run(
        self,
        request: Message,
        intent: "asyncio.Future[Any]",
        cell_id: str,
        timeout_s: float | None,
        output_cap: int,
        on_output: OnOutput | None,
        *,
        stdin: bytes | None = None,
    ) -> RunResult:
        limits = self.record.spec.limits
        timeout = limits.timeout_s if timeout_s is None else timeout_s
        channel = self._ready_channel()
        self.changed = True
        if self.record.spec.egress.mode != "none":
            await intent  # what may reach the world is on the disk before it starts
        request |= {
            "id": cell_id, "timeout": timeout, "cap": max(1024, min(output_cap, 2 * MIB)), "limit": limits.output_bytes,
            "stream": on_output is not None,
        }  # fmt: skip
        waiter = channel.expect(cell_id)
        if on_output is not None:
            listener = on_output
            channel.listen(cell_id, lambda which, data: listener("stdout" if which == 1 else "stderr", data))
        self._meter.begin(cell_id)
        channel.post(request)
        feeding = None
        if stdin is not None:
            feeding = asyncio.ensure_future(channel.post_bytes(cell_id, stdin, close=bool(stdin)))
        try:
            answer = await channel.answer(cell_id, waiter, timeout + 30.0)
        except TimeoutError:
            raise SandboxError(
                f"{self.record.name}: the agent gave no answer to {cell_id!r} in time"
            ) from None
        except asyncio.CancelledError:
            if channel.closed is None:
                channel.post({"op": "signal", "id": cell_id, "sig": "KILL"})
            raise
        finally:
            cpu_s = self._meter.end(cell_id)
            if feeding is not None:
                feeding.cancel()
        await (
            intent
        )  # what stays inside falls with the machine; its result leaves only when its intent is safe
        result = result_of(cell_id, answer, self.backend, limits, timeout, cpu_s)
        self._note(
            "exit", cell_id=cell_id, ok=result.ok, exit_code=result.exit_code, stdout_bytes=result.stdout_bytes,
            stderr_bytes=result.stderr_bytes, wall_s=result.wall_s, cpu_s=result.cpu_s, replayed=result.replayed,
            reason=result.failure.reason if result.failure else None,
        )  # fmt: skip
        return result

    async def send_stdin(self, cell_id: str, data: bytes, *, close: bool = False) -> None:
        """See `Sandbox.send_stdin`."""
        await self._ready_channel().post_bytes(cell_id, data, close=close)

    async def signal(
        self, cell_id: str, signal: Literal["INT", "TERM", "KILL", "HUP", "USR1", "USR2"]
    ) -> None:
        """See `Sandbox.signal`."""
        await self._recorded("signal", cell_id=cell_id, signal=signal)
        self._ready_channel().post({"op": "signal", "id": cell_id, "sig": signal})

    # ---- files

    async def read(self, path: str, *, max_bytes: int = 16 * MIB) -> bytes:
        """See `Sandbox.read`."""
        await self._recorded("read", path=path)
        if max_bytes > MAX_FILE:
            raise GuestFileError(f"at most {MAX_FILE >> 20} MiB are read at once", param="max_bytes")
        data = await self._file({"op": "read", "path": path, "max": max_bytes}, path, keep=max_bytes)
        self._note("read_done", path=path, bytes=len(data))
        return data

    async def write(self, path: str, data: bytes) -> None:
        """See `Sandbox.write`."""
        await self._recorded("write", path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        self.changed = True
        if len(data) <= SMALL_FILE:
            await self._file({"op": "write", "path": path, "data": base64.b64encode(data).decode()}, path)
        else:
            await self._file({"op": "write", "path": path}, path, send=data)

    async def _file(self, request: Message, path: str, *, send: bytes | None = None, keep: int = 0) -> bytes:
        if not path.startswith("/") or "\0" in path or len(path) > 4096:
            raise GuestFileError(f"{path!r} is no absolute path", param="path", code="EINVAL")
        channel = self._ready_channel()
        name = self._request_name()
        waiter = channel.expect(name)
        got = bytearray()

        def take(which: int, data: bytes) -> None:
            if which == 1 and len(got) <= keep:
                got.extend(data)

        channel.listen(name, take)
        channel.post(
            request
            | {"id": name, "timeout": FILE_TIMEOUT_S, "cap": 4096, "limit": MAX_FILE + MIB, "raw": True}
        )
        if send is not None:
            await channel.post_bytes(name, send, close=True)
        try:
            answer = await channel.answer(name, waiter, FILE_TIMEOUT_S + 10)
        except TimeoutError:
            raise GuestFileError(
                f"{path}: the guest did not answer in time", param="path", code="ETIMEDOUT"
            ) from None
        if not answer.get("ok"):
            said = str(answer.get("stderr", "")).strip()[:500] or str(answer.get("reason"))
            raise GuestFileError(
                said if path in said else f"{path}: {said}", param="path", code=str(answer.get("errno"))
            )
        if len(got) > keep and send is None:
            raise GuestFileError(f"{path} holds more than {keep} bytes", param="max_bytes", code="EFBIG")
        return bytes(got)

    # ---- state

    async def snapshot(self, *, epoch: int | None = None, wait_s: float = WAIT_S) -> str:
        """See `Sandbox.snapshot`."""
        with span("snapshot", self.info, epoch=epoch):
            snapshot_id: str = await self._save_snapshot(self, epoch, wait_s)
        return snapshot_id

    async def fork(self, n: int, *, names: list[str] | None = None, wait_s: float = WAIT_S) -> list[Any]:
        """See `Sandbox.fork`."""
        with span("fork", self.info, num_forks=n):
            outcomes: list[Any] = await self._fork_snapshot(self, n, names, wait_s)
        return outcomes

    async def quiesce(self, wait_s: float) -> Tree | None:
        """Wait until no cell runs, and hold the next ones until `unquiesce`: nothing of ours is half done in between.

        Returns the files of the workspace, or None where they are too many. Raises SandboxBusy when a cell runs longer.
        """
        self._cells_may_start.clear()
        deadline = time.monotonic() + wait_s
        pause_s = 0.002
        try:
            while True:
                answer = await self._ask({"op": "quiesce", "tree": "/work"}, timeout_s=10.0)
                if answer.get("ok"):
                    return read_listing(answer.get("tree"))
                if time.monotonic() >= deadline:
                    raise SandboxBusy(
                        f"cell {answer.get('busy')!r} still runs after {wait_s:g} s, and a machine is saved between cells: "
                        "interrupt it (signal INT) or give a longer wait_s",
                        param="wait_s",
                    )
                await asyncio.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
                pause_s = min(2 * pause_s, 0.1)
        except BaseException:
            self._cells_may_start.set()
            raise

    async def unquiesce(self) -> None:
        """Give running commands their time back after a snapshot, and let cells start."""
        self._cells_may_start.set()
        await self._ask({"op": "unquiesce"}, timeout_s=10.0)

    async def pause(self, *, wait_s: float = WAIT_S) -> None:
        """See `Sandbox.pause`."""
        await self._recorded("pause")
        with self.held():
            await self.quiesce(wait_s)
            try:
                await self.machine.pause()
            finally:
                self._cells_may_start.set()  # from now on they are refused
            self.record.state = "paused"
        self.save()

    async def resume(self) -> None:
        """Let it run on."""
        if self.record.state != "paused":
            raise SandboxBusy(f"{self.record.name} is {self.record.state}, not paused")
        await self._recorded("resume")
        await self.machine.resume()
        self.record.state = "ready"
        await self.unquiesce()
        self.save()

    async def ping(self) -> None:
        """One round to the agent."""
        await self._ask({"op": "ping"}, timeout_s=10.0)

    async def status(self) -> Message:
        """What the agent says of disk, processes and running cells."""
        return await self._ask({"op": "status"}, timeout_s=10.0)

    def check_lease(self) -> None:
        self._lease.check()

    # ---- an idle machine costs nothing

    async def park_if_quiet(self) -> bool:
        """Stop the machine if nothing in it could go on by itself; it wakes with the next request."""
        return await self._parking.if_quiet()

    def held(self) -> AbstractContextManager[None]:
        """Awake until the end of the block."""
        return self._parking.held()

    def unpark(self) -> None:
        self._parking.wake()

    def _is_idle(self) -> bool:
        return self.record.state == "ready" and self._lost is None and self.num_running == 0

    async def _is_quiet(self) -> bool:
        return bool((await self._ask({"op": "status"}, timeout_s=10.0)).get("quiet"))

    # ---- small pieces

    def note(self, kind: str, **fields: Any) -> None:
        """A record of this sandbox's own chain."""
        self._note(kind, **fields)

    def _ready_channel(self) -> Channel:
        if self._lost is not None:
            raise self._lost
        if self.record.state == "paused":
            raise SandboxBusy(f"{self.record.name} is paused; resume it first")
        if self._channel is None or self.record.state == "destroyed":
            raise SandboxBusy(f"{self.record.name} is {self.record.state}")
        self.unpark()
        return self._channel

    async def _ask(self, message: Message, *, timeout_s: float) -> Message:
        if self._lost is not None:
            raise self._lost
        if self._channel is None:
            raise SandboxBusy(f"{self.record.name} is {self.record.state}")
        self.unpark()
        try:
            return await self._channel.ask(message | {"id": self._request_name()}, timeout_s=timeout_s)
        except TimeoutError:
            raise SandboxError(
                f"{self.record.name}: the agent did not answer within {timeout_s:.0f} s"
            ) from None

    def _request_name(self) -> str:
        self._requests += 1
        return f"~{self._lease.token}.{self._requests}"

    def _intent(self, kind: str, **fields: Any) -> "asyncio.Future[Any]":
        """An intent, in the log now; the future is done when it is on the disk."""
        self._lease.check()
        return asyncio.wrap_future(self._append(kind, fields))

    async def _recorded(self, kind: str, **fields: Any) -> None:
        """An intent, on the disk before the act."""
        await self._intent(kind, **fields)

    def _note(self, kind: str, **fields: Any) -> None:
        self._append(kind, fields)

    def _append(self, kind: str, fields: dict[str, Any]) -> Any:
        return self._audit.append(
            kind, chain=self.record.id, box=self.record.id, name=self.record.name, backend=self.backend.name,
            strength=str(self.backend.strength), gen=self.record.generation, **fields,
        )  # fmt: skip
