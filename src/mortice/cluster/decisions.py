"""The control plane under the real clock: the live cluster's events in, decisions out, written down where asked.

`sched/plane.py` decides, here and in the simulator alike; docs/sched.md says which event is due when. Events of workers that
come before the plane is set up (it may wait for a measurement of them) are heard in their order when it is.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from mortice.cluster.api import Turn
from mortice.cluster.views import turn_view
from mortice.sched.controller import Decision
from mortice.sched.events import Event, Tick
from mortice.sched.journal import Journal
from mortice.sched.plane import Answer, ControlPlane, Setup
from mortice.specs.errors import RequestError

KEEP = 128  # turns that are remembered for whoever looks


class Decisions:
    """One a cluster. `journal`: file that gets one JSON line an event; `mortice sim replay` reads it."""

    def __init__(
        self,
        setup: Setup | None = None,
        *,
        journal: str | Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._began_s = clock()
        self._path = journal
        self._journal: Journal | None = None
        self._plane: ControlPlane | None = None
        self._early: list[Event] = []
        self.turns: deque[Turn] = deque(maxlen=KEEP)  # of the control loop, as the edge shows them
        if setup is not None:
            self.begin(setup)

    def begin(self, setup: Setup) -> None:
        """From now on events are answered. Raises RequestError where the journal cannot be written."""
        if self._path is not None:
            try:
                self._journal = Journal(self._path, setup)
            except OSError as error:
                raise RequestError(
                    f"cannot write decisions to {self._path}: {error.strerror}", param="decisions"
                ) from error
        self._plane = ControlPlane(setup, self._journal.write if self._journal else None)
        early, self._early = self._early, []
        for event in early:
            self.hear(event)

    @property
    def plane(self) -> ControlPlane:
        assert self._plane is not None, "the plane has not been set up"
        return self._plane

    @property
    def has_begun(self) -> bool:
        return self._plane is not None

    def now(self) -> float:
        """Seconds since the start of the cluster, on the one clock that all events are told in."""
        return self._clock() - self._began_s

    def hear(self, event: Event) -> Answer | None:
        if self._plane is None:
            self._early.append(event)
            return None
        return self._plane.hear(event)

    def decide(self) -> Decision:
        """A period of the control loop is over."""
        decision = self.hear(Tick(self.now()))
        assert isinstance(decision, Decision)
        self.turns.append(turn_view(decision))
        return decision

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
            self.plane.journal = None
