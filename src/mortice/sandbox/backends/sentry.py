"""The control socket of a running gVisor kernel: what `runsc` says to it, said without starting 30 MB of Go for it.

The protocol is gVisor's urpc: a stream socket, one JSON object with `method` and `arg` out, one with `success`, `err` and
`result` back, files as SCM_RIGHTS beside the request's first byte. Names and shapes are those of release 20240729, whose
binary is pinned by its hash.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mortice.sandbox.contract import SandboxError

CALL_TIMEOUT_S = 30.0
MAX_ANSWER = 1 << 20
IMAGE_FILES = ("checkpoint.img", "pages_meta.img", "pages.img")

LOOPBACK = {
    "Name": "lo",
    "Addresses": [{"Address": "127.0.0.1", "PrefixLen": 8}, {"Address": "::1", "PrefixLen": 128}],
    "Routes": [
        {"Destination": {"IP": "127.0.0.0", "Mask": "/wAAAA=="}},
        {"Destination": {"IP": "::1", "Mask": "/////////////////////w=="}},
    ],
}
"""What `runsc --network=none` gives a kernel before it starts: masks are base64 of their bytes."""


class Sentry:
    """Calls to one kernel. Each opens a connection of its own; the kernel serves them side by side."""

    def __init__(self, box_id: str, runsc_root: Path) -> None:
        self._id = box_id
        self._root = runsc_root

    async def checkpoint(self, folder: Path) -> None:
        """Save memory, processes and files into `folder`, uncompressed; the kernel runs on."""
        folder.mkdir(mode=0o700)
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        with _opened([folder / name for name in IMAGE_FILES], flags) as files:
            options = {"metadata": {"compression": "none"}, "have_pages_file": True, "Resume": True}
            await self._call("containerManager.Checkpoint", options, files)

    async def restore(self, folder: Path) -> None:
        """Load what `checkpoint` saved into a kernel that was created and never started."""
        with _opened([folder / name for name in IMAGE_FILES], os.O_RDONLY | os.O_CLOEXEC) as files:
            await self._call("Network.CreateLinksAndRoutes", {"LoopbackLinks": [LOOPBACK]})
            await self._call("containerManager.Restore", {"HavePagesFile": True}, files)

    async def pause(self) -> None:
        """Stop every task; returns once they have stopped."""
        await self._call("containerManager.Pause")

    async def resume(self) -> None:
        """Let them go on."""
        await self._call("containerManager.Resume")

    async def _call(self, method: str, argument: Any = None, files: Sequence[int] = ()) -> None:
        """Raises SandboxError with what the kernel said against it."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await self._exchange(method, argument, files)
        except TimeoutError:
            raise SandboxError(f"gVisor's {method} did not end within {CALL_TIMEOUT_S:.0f} s") from None
        except (OSError, ValueError) as error:
            raise SandboxError(f"gVisor's kernel does not answer to {method}: {error}") from None
        if not answer.get("success"):
            raise SandboxError(f"gVisor's {method} failed: {str(answer.get('err'))[:2000]}")

    async def _exchange(self, method: str, argument: Any, files: Sequence[int]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            with _reachable(self._socket_path()) as path:
                await loop.sock_connect(sock, path)
            request = json.dumps({"method": method, "arg": argument}).encode()
            if socket.send_fds(sock, [request], list(files)) != len(request):
                raise OSError("the request did not fit into the socket")
            said = bytearray()
            while len(said) < MAX_ANSWER:
                piece = await loop.sock_recv(sock, 65536)
                if not piece:
                    raise OSError("it hung up")
                said += piece
                with contextlib.suppress(json.JSONDecodeError):
                    answer = json.loads(said)
                    return answer if isinstance(answer, dict) else {}
        raise OSError("its answer has no end")

    def _socket_path(self) -> Path:
        """Where runsc put it: the first folder in which a path was short enough for it."""
        for path in socket_paths(self._id, self._root):
            if path.is_socket():
                return path
        raise OSError(f"it has no control socket runsc-{self._id}.sock")


def socket_paths(box_id: str, runsc_root: Path) -> list[Path]:
    """Everywhere runsc may put a kernel's control socket, in its order."""
    folders = (runsc_root, Path("/var/run"), Path("/run"), Path("/tmp"))
    return [folder / f"runsc-{box_id}.sock" for folder in folders]


@contextlib.contextmanager
def _opened(paths: Sequence[Path], flags: int) -> Iterator[list[int]]:
    files: list[int] = []
    try:
        for path in paths:
            files.append(os.open(path, flags, 0o600))
        yield files
    finally:
        for fd in files:
            os.close(fd)


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name of the socket that fits into an address: 108 bytes at most."""
    if len(os.fsencode(path)) < 108:
        yield str(path)
        return
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
