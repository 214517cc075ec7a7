"""Starts the process that receives what guest kernels report, and words the session that makes them report it."""

import asyncio
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mortice.sandbox.contract import SandboxError, SandboxSpec
from mortice.sandbox.home import Home

START_TIMEOUT_S = 15.0
FRESH_S = 5.0  # a sink that answered this recently is not asked again; it ends after 30 s of silence


class Recorder:
    """One sink process serves all boxes of a home, survives their supervisors, and ends when none reports any more."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._answered = 0.0

    async def trace_session(self, spec: SandboxSpec) -> dict[str, Any]:
        """The `--pod-init-config` of a traced sandbox; the sink is listening when this returns."""
        if time.monotonic() - self._answered > FRESH_S:
            await asyncio.to_thread(self._ensure)
            self._answered = time.monotonic()
        retries = 1_000_000 if spec.audit == "strict" else 3
        sink = {
            "endpoint": str(socket_path(self._home.root)),
            "retries": retries,
            "backoff": "25us",
            "backoff_max": "10ms",
        }
        return {
            "trace_session": {
                "name": "Default",
                "ignore_missing": True,
                "points": [
                    {
                        "name": "sentry/execve",
                        "context_fields": ["time", "container_id", "group_id", "process_name"],
                    },
                    *(
                        {
                            "name": f"syscall/{call}/exit",
                            "optional_fields": ["fd_path"] if call == "openat" else [],
                            "context_fields": ["time", "container_id", "group_id", "process_name", "cwd"],
                        }
                        for call in ("open", "openat", "creat")
                    ),
                    {
                        "name": "syscall/connect/enter",
                        "context_fields": ["time", "container_id", "group_id", "process_name"],
                    },
                ],
                "sinks": [{"name": "remote", "config": sink, "ignore_setup_error": False}],
            }
        }

    def _ensure(self) -> None:
        path = socket_path(self._home.root)
        deadline = time.monotonic() + START_TIMEOUT_S
        started = False
        while not _answers(path):
            if not started:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                subprocess.Popen(
                    [sys.executable, "-m", "mortice.sandbox.sink", str(self._home.root)],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    start_new_session=True, cwd="/",
                )  # fmt: skip
                started = True
            if time.monotonic() > deadline:
                raise SandboxError("the process that records what guests do did not start")
            time.sleep(0.01)


def socket_path(root: Path) -> Path:
    """Where the sink listens: in the home, or where the path is too long for a socket, in a folder of this user's own."""
    path = root / "sink.sock"
    if len(os.fsencode(path)) < 100:
        return path
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"mortice-{os.getuid()}-{digest}" / "sink.sock"


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
        return True
