"""QEMU's machine protocol over a unix socket: one command at a time, files passed beside it."""

import asyncio
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from mortice.sandbox.contract import SandboxError

CALL_TIMEOUT_S = 30.0
MAX_LINE = 1 << 20
POLL_S = 0.004


class Qmp:
    """One session with the monitor; use it in `async with`. Events are skipped: what is waited for is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said = bytearray()

    async def __aenter__(self) -> "Qmp":
        self._sock = connect(self._path)
        self._sock.setblocking(False)
        try:
            await self._line()  # the greeting
            await self.call("qmp_capabilities")
        except BaseException:
            self._sock.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    async def call(self, command: str, *, fd: int | None = None, **arguments: Any) -> Any:
        """The command's result. Raises SandboxError with what QEMU said against it."""
        request = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                if fd is None:
                    await asyncio.get_running_loop().sock_sendall(self._sock, request)
                else:
                    socket.send_fds(self._sock, [request], [fd])
                while True:
                    answer = json.loads(await self._line())
                    if "return" in answer:
                        return answer["return"]
                    if "error" in answer:
                        raise SandboxError(f"QEMU's {command} failed: {answer['error'].get('desc')}")
        except TimeoutError:
            raise SandboxError(f"QEMU's {command} did not end within {CALL_TIMEOUT_S:.0f} s") from None
        except (OSError, ValueError) as problem:
            raise SandboxError(f"QEMU does not answer to {command}: {problem}") from None

    async def give_file(self, path: Path, flags: int) -> str:
        """Open a file here and hand it over; the name under which QEMU may use it as a `file:` address."""
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            number = (await self.call("add-fd", fd=fd))["fdset-id"]
        finally:
            os.close(fd)
        return f"file:/dev/fdset/{number}"

    async def until(self, command: str, ended: tuple[str, ...], *, timeout_s: float) -> dict[str, Any]:
        """Ask until `status` is one of these. Raises SandboxError when it takes longer."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    answer: dict[str, Any] = await self.call(command)
                    if answer.get("status") in ended:
                        return answer
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise SandboxError(
                f"QEMU's {command} did not come to {' or '.join(ended)} within {timeout_s:.0f} s"
            ) from None

    async def _line(self) -> bytes:
        while b"\n" not in self._said:
            piece = await asyncio.get_running_loop().sock_recv(self._sock, 65536)
            if not piece or len(self._said) > MAX_LINE:
                raise OSError("it hung up")
            self._said += piece
        line, _, rest = self._said.partition(b"\n")
        self._said = rest
        return bytes(line)


def connect(path: Path) -> socket.socket:
    """A stream to a unix socket whose path may be longer than an address holds."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(folder)
    return sock
