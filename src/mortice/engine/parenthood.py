"""What a process tells the kernel of itself: its name, and with whom it dies."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int | None = None) -> None:
    """The kernel kills this process when its parent ends, however that came about. `parent`: who that was at the fork; if
    it is gone already this process ends here."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        sys.exit(1)


def say_name(name: str) -> None:
    """For `ps -o comm` and `top`; the kernel keeps 15 letters."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15])
