"""Requests that no worker can take yet, in the order in which they are to be tried again.

What a worker computes next among the requests it has is `sched/batching.py`'s, inside the worker. Here wait those that are
between workers: the last decode worker died, or a pool is empty until another has started.
"""

from mortice.cluster.flight import Flight


class RequestScheduler:
    """Higher priority first, then the older request, as in a worker."""

    def __init__(self) -> None:
        self._held: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, flight: Flight) -> None:
        self._held[flight.request.id] = flight

    def drop(self, flight: Flight) -> None:
        if self._held.get(flight.request.id) is flight:
            del self._held[flight.request.id]

    def take(self) -> list[Flight]:
        """Everybody who waits; they wait no longer."""
        held, self._held = self._held, {}
        return sorted(held.values(), key=lambda f: (-f.request.priority, f.arrived_s, f.request.id))
