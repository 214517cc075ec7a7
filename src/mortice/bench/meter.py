"""What a run cost in CPU: ours, and the server's where its /metrics says so."""

import os
import re
import time
from collections.abc import Iterator

from mortice.bench.endpoint import Endpoint
from mortice.bench.http import ExchangeFailed

VOID_SHARE = 0.8  # a client above this share of a core measures itself

_SAMPLE = re.compile(r"^process_cpu_seconds_total(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)


def client_cpu_s() -> float:
    """CPU seconds of this process, all threads."""
    return time.process_time()


async def server_cpu_s(endpoint: Endpoint) -> float | None:
    """CPU seconds of the server, summed over the processes its /metrics lists; None where it lists none."""
    try:
        answer = await endpoint.client.exchange("GET", f"{endpoint.root}/metrics")
    except ExchangeFailed:
        return (
            None  # no metrics is a property of a server, not a failure of the run; the report then says null
        )
    if answer.status != 200:
        return None
    samples = list(_numbers(answer.body.decode("utf-8", "replace")))
    return sum(samples) if samples else None


def _numbers(exposition: str) -> Iterator[float]:
    for text in _SAMPLE.findall(exposition):
        try:
            yield float(text)
        except ValueError:
            continue


def machine() -> dict:
    """What else to know about a measurement on this host."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cores": os.cpu_count(), "load_1min": load}
