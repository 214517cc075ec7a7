"""The host's own monotonic clocks, whatever time namespace this process is in."""

import functools
import time
from pathlib import Path


def monotonic_ns() -> int:
    """Nanoseconds of the host's monotonic clock: what processes in different time namespaces write down can be compared."""
    return time.monotonic_ns() - offset_ns("monotonic")


@functools.cache
def offset_ns(clock: str) -> int:
    """What this time namespace adds to a clock of the host, `monotonic` or `boottime` (time_namespaces(7))."""
    try:
        lines = Path("/proc/self/timens_offsets").read_text().splitlines()
    except OSError:
        return 0  # a kernel without time namespaces
    for name, seconds, nanoseconds in (line.split() for line in lines):
        if name == clock:
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return 0
