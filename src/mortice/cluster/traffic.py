"""Requests on their way through workers: what is said to whom when one is prefilled, moves on, ends or loses its worker.

No event loop, no socket, no process: words go out through a `Crew`, words come in as calls. The live cluster drives it
with processes, the tests of the hand-over protocol with engines on a network that misbehaves.
"""

from collections import deque
from typing import Protocol

from mortice.cluster.flight import Flight
from mortice.sched.recovery import should_retry
from mortice.sched.router import Load, Route, Router
from mortice.specs.errors import EngineError, Unavailable
from mortice.specs.messages import (
    Abort,
    Deltas,
    EndSequence,
    LeaseRelease,
    LeaseRenew,
    Prefilled,
    Pushed,
    PushTarget,
    Submit,
    ToWorker,
)
from mortice.specs.request import Delta

Word = Deltas | Prefilled | LeaseRenew | LeaseRelease | PushTarget | Pushed


class Crew(Protocol):
    """The workers, as traffic sees them."""

    def send(self, worker_id: str, message: ToWorker) -> bool:
        """In order of the calls; False if that worker does not live (any more)."""

    def loads(self, assigned: dict[str, int], prompt_tokens: dict[str, int]) -> list[Load]:
        """Every worker that takes requests now, with how much of each is given to it."""

    def can_decode(self) -> bool:
        """A decode worker lives or is going to."""

    def tell(
        self,
        kind: str,
        flight: Flight,
        *,
        worker_id: str = "",
        peer_id: str = "",
        num_tokens: int = 0,
        detail: str = "",
    ) -> None:
        """Something the dashboard shows happened to this request."""


class Traffic:
    """Every request between the edge and the workers, each in exactly one place."""

    def __init__(self, router: Router, crew: Crew) -> None:
        self._router = router
        self._crew = crew
        self._flights: dict[str, Flight] = {}
        self._pending: deque[Flight] = deque()  # no worker could take them yet

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._flights

    def flights(self) -> list[Flight]:
        return list(self._flights.values())

    # -- the edge's side ----------------------------------------------------------------------------------------

    def open(self, flight: Flight) -> None:
        """Take a request in and send it on its way."""
        self._flights[flight.request.id] = flight
        self._crew.tell("queued", flight, num_tokens=len(flight.request.prompt_token_ids))
        self._dispatch(flight)

    def close(self, flight: Flight) -> None:
        """The flight is over, by its end or because nobody listens any more: nothing of it may stay anywhere."""
        self._flights.pop(flight.request.id, None)
        if flight in self._pending:
            self._pending.remove(flight)
        if flight.is_over:
            self._crew.tell("finish", flight, num_tokens=sum(map(len, flight.given)))
        else:
            self._crew.tell("abort", flight)
        if flight.worker_id is not None and not flight.is_over:
            self._crew.send(flight.worker_id, Abort([flight.request.id]))
        self._end_lease(flight)

    def end_sequence(self, request_id: str, index: int) -> None:
        """This sequence ends here and on its worker; the rest of its request goes on."""
        flight = self._flights.get(request_id)
        if flight is None or index in flight.finished:
            return
        worker_id = flight.worker_id
        flight.take(Delta(request_id, index, [], finish_reason="abort"))
        if worker_id is not None:
            over = flight.is_over
            self._crew.send(worker_id, Abort([request_id]) if over else EndSequence(request_id, index))

    # -- words of workers ---------------------------------------------------------------------------------------

    def hear(self, worker_id: str, message: Word) -> None:
        """A word of a living worker about requests or their KV."""
        match message:
            case Deltas(deltas):
                self._deltas(worker_id, deltas)
            case Prefilled():
                self._prefilled(worker_id, message)
            case LeaseRenew() | LeaseRelease():
                self._lease_word(message)
            case PushTarget():
                self._push_target(worker_id, message)
            case Pushed():
                self._crew.send(message.target_lease_id.rpartition(">")[2], message)

    # -- workers that come and go -------------------------------------------------------------------------------

    def worker_died(self, worker_id: str, *, blamed: bool = True) -> None:
        """Its requests go elsewhere. By now the crew does not count it among the living, and has told them `PeerGone`.
        `blamed`: one of them may have been the cause."""
        for flight in self.flights():
            if flight.descriptor is not None and owner_of(flight.descriptor.lease_id) == worker_id:
                flight.descriptor = None
            if flight.worker_id == worker_id and not flight.is_over:
                self._end_lease(flight)
                flight.num_attempts += blamed
                if should_retry(flight.num_attempts):
                    self._dispatch(flight)
                else:
                    flight.fail(EngineError(f"{flight.num_attempts} workers died under this request"))

    def retry_pending(self) -> None:
        """A worker is ready, or a place was given up: look again at who waits."""
        waiting, self._pending = self._pending, deque()
        for flight in waiting:
            self._dispatch(flight)

    # -- inside -------------------------------------------------------------------------------------------------

    def _prefilled(self, worker_id: str, message: Prefilled) -> None:
        flight = self._flights.get(message.request_id)
        if flight is None or flight.worker_id != worker_id or flight.is_over:
            if message.descriptor is not None:
                self._crew.send(worker_id, LeaseRelease([message.descriptor.lease_id]))
            return
        for delta in message.first:
            flight.take(delta)
        self._crew.tell("prefill", flight, num_tokens=len(flight.request.prompt_token_ids))
        if message.descriptor is None:
            return
        chosen = self._router.choose_decode(flight.names, self._loads())
        if chosen is None:
            self._crew.send(worker_id, LeaseRelease([message.descriptor.lease_id]))
            self._dispatch(flight)
            return
        flight.worker_id, flight.stage, flight.descriptor = chosen.worker_id, "decode", message.descriptor
        self._crew.tell(
            "handoff",
            flight,
            worker_id=worker_id,
            peer_id=chosen.worker_id,
            num_tokens=message.descriptor.num_tokens,
        )
        self._crew.send(
            chosen.worker_id,
            Submit(request=flight.request, resumed=flight.resumed, handoff=message.descriptor),
        )

    def _deltas(self, worker_id: str, deltas: list[Delta]) -> None:
        for delta in deltas:
            flight = self._flights.get(delta.request_id)
            if flight is not None and flight.worker_id == worker_id:
                flight.take(delta)

    def _lease_word(self, message: LeaseRenew | LeaseRelease) -> None:
        """Pass a reader's word on to the owners of the leases it names."""
        by_owner: dict[str, list[str]] = {}
        for lease_id in message.lease_ids:
            by_owner.setdefault(owner_of(lease_id), []).append(lease_id)
        for owner, ids in by_owner.items():
            self._crew.send(owner, type(message)(ids))
        if isinstance(message, LeaseRelease):
            over = set(message.lease_ids)
            for flight in self._flights.values():
                if flight.descriptor is not None and flight.descriptor.lease_id in over:
                    flight.descriptor = None
                    self._crew.tell("decode", flight)

    def _push_target(self, worker_id: str, message: PushTarget) -> None:
        """Pass a reader's order on to the owner; a dead owner's answer is given here."""
        if not self._crew.send(owner_of(message.lease_id), message):
            lost = Pushed(
                lease_id=message.lease_id,
                target_lease_id=message.target.lease_id,
                error="the owner is gone",
            )
            self._crew.send(worker_id, lost)

    def _dispatch(self, flight: Flight) -> None:
        """Give a flight to the worker that the router picks, or let it wait for one."""
        flight.worker_id, flight.stage, flight.descriptor = None, "pending", None
        loads = self._loads()
        resumed = flight.resumed
        if resumed:  # it was decoding: whoever goes on computes what was lost
            chosen = self._router.choose_decode(flight.names, loads)
            route = None if chosen is None else Route(None, chosen.worker_id, "recovery")
        else:
            route = self._router.route(len(flight.request.prompt_token_ids), flight.names, loads)
        if route is None:
            if not self._crew.can_decode():
                flight.fail(Unavailable("no decode worker is left"))
            else:
                self._pending.append(flight)
            return
        flight.worker_id = route.prefill or route.decode
        flight.stage = "prefill" if route.prefill else "decode"
        self._crew.tell("route", flight, detail=route.reason)
        self._crew.send(
            flight.worker_id,
            Submit(request=flight.request, prefill_only=route.prefill is not None, resumed=resumed),
        )

    def _loads(self) -> list[Load]:
        assigned: dict[str, int] = {}
        tokens: dict[str, int] = {}
        for flight in self._flights.values():
            if flight.worker_id is not None:
                assigned[flight.worker_id] = assigned.get(flight.worker_id, 0) + 1
                if flight.stage == "prefill":
                    prompt = len(flight.request.prompt_token_ids)
                    tokens[flight.worker_id] = tokens.get(flight.worker_id, 0) + prompt
        return self._crew.loads(assigned, tokens)

    def _end_lease(self, flight: Flight) -> None:
        if flight.descriptor is not None:
            lease_id = flight.descriptor.lease_id
            self._crew.send(owner_of(lease_id), LeaseRelease([lease_id]))
            flight.descriptor = None


def owner_of(lease_id: str) -> str:
    """The worker that granted a lease."""
    return lease_id.partition("/")[0]
