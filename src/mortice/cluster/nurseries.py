"""This process's nursery: started with the first worker, shared by all launchers, gone with this process."""

import atexit
import os
import socket
import subprocess
import sys
import threading

_lock = threading.Lock()
_nursery: "tuple[subprocess.Popen[bytes], socket.socket] | None" = None


def new_line() -> socket.socket:
    """A line to the nursery (engine/nursery.py), not blocking. Starts a nursery where none lives."""
    global _nursery
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with _lock, theirs:
        if _nursery is not None:
            try:
                socket.send_fds(_nursery[1], [b"+"], [theirs.fileno()])
                return ours
            except OSError:  # it died
                _nursery[0].wait()
                _nursery[1].close()
        _nursery = _start()
        socket.send_fds(_nursery[1], [b"+"], [theirs.fileno()])
    return ours


@atexit.register
def _end() -> None:
    """With this process its nursery goes, and with that every worker that is left."""
    if _nursery is not None:
        process, control = _nursery
        control.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start() -> tuple["subprocess.Popen[bytes]", socket.socket]:
    control, standard_input = socket.socketpair()
    with standard_input:
        process = subprocess.Popen(
            [sys.executable, "-m", "mortice.engine.nursery"],
            stdin=standard_input.fileno(),
            # Pools of threads at import would not survive the forks.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
    return process, control
