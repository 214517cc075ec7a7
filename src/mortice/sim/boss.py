"""What a simulated worker, of either kind, tells the cluster."""

from typing import Any, Protocol

from mortice.sim.request import SimRequest


class Boss(Protocol):
    def first_or_next(self, request: SimRequest, worker: Any) -> None:
        """Its prompt is computed and a token came out of it."""

    def finished(self, request: SimRequest, worker: Any) -> None: ...

    def fetch(self, request: SimRequest, worker: Any, delay_s: float) -> None:
        """Room is made: bring its KV, from `delay_s` on."""

    def returned(self, request: SimRequest) -> None:
        """What was lent for it, or waits for it, is not wanted any more."""
