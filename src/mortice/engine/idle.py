"""How long the device waited for the host: from the end of one step's forward pass to the start of the next one's."""

import time
from collections import deque
from contextlib import AbstractContextManager
from types import TracebackType

import torch


class DeviceIdle(AbstractContextManager):
    """A `with` block round each forward pass; gaps between them add up unless `forget` was said in between.

    On a GPU the instants are the device's own (events in its stream), so a forward pass that the host has only queued is
    still being computed. What the device does for sampling counts as waiting: it is no step's own work.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._total_s = 0.0
        self._free_since_s: float | None = None
        self._free_since: torch.cuda.Event | None = None
        self._gaps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()  # not known yet to be over

    def __enter__(self) -> "DeviceIdle":
        if self._on_device:
            begun = _mark()
            if self._free_since is not None:
                self._gaps.append((self._free_since, begun))
            self._count()
        elif self._free_since_s is not None:
            self._total_s += time.perf_counter() - self._free_since_s
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._on_device:
            self._free_since = _mark()
        else:
            self._free_since_s = time.perf_counter()

    def forget(self) -> None:
        """There is nothing to compute: what follows is no waiting for the host."""
        self._free_since_s = self._free_since = None

    def total_s(self) -> float:
        self._count()
        return self._total_s

    def _count(self) -> None:
        while self._gaps and self._gaps[0][1].query():
            ended, begun = self._gaps.popleft()
            self._total_s += ended.elapsed_time(begun) / 1e3


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
