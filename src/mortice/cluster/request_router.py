"""Requests on their way through workers: what is said to whom when one is prefilled, moves on, ends or loses its worker.

Where a request goes is the control plane's to say (`decisions.py`, docs/sched.md); here every request is told of and every
answer carried out. No event loop, no socket, no process: words go out through a `Crew`, words come in as calls. The live
cluster drives it with processes, the tests of the hand-over protocol with engines on a network that misbehaves.
"""

from typing import Protocol

from mortice.cluster.decisions import Decisions
from mortice.cluster.flight import Flight
from mortice.cluster.kv_connector import KVConnector, owner_of
from mortice.cluster.request_scheduler import RequestScheduler
from mortice.sched import events
from mortice.sched.plane import DecodeAt, Refused, Routed
from mortice.sched.recovery import should_retry
from mortice.sched.router import Route
from mortice.specs.errors import EngineError, MorticeError, Overloaded, Unavailable
from mortice.specs.messages import Abort, Deltas, EndSequence, LeaseRelease, Prefilled, Submit, ToWorker
from mortice.specs.request import Delta


class Crew(Protocol):
    """The workers, as the router sees them."""

    def send(self, worker_id: str, message: ToWorker) -> bool:
        """In order of the calls; False if that worker does not live (any more)."""

    def can_decode(self) -> bool:
        """A worker that decodes lives or is going to."""

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


class RequestRouter:
    """Every request between the edge and the workers, each in exactly one place."""

    def __init__(self, decisions: Decisions, connector: KVConnector, crew: Crew) -> None:
        self._decisions = decisions
        self._connector = connector
        self._crew = crew
        self._flights: dict[str, Flight] = {}
        self._held = RequestScheduler()

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._flights

    def flights(self) -> list[Flight]:
        return list(self._flights.values())

    def is_needed(self, worker_id: str) -> bool:
        """Some request runs there, or its KV waits there for its reader."""
        return any(
            f.worker_id == worker_id
            or (f.descriptor is not None and owner_of(f.descriptor.lease_id) == worker_id)
            for f in self._flights.values()
        )

    # -- the edge's side ----------------------------------------------------------------------------------------

    def open(self, flight: Flight) -> None:
        """Take a request in and send it on its way."""
        flight.arrived_s = self._decisions.now()
        self._flights[flight.request.id] = flight
        self._crew.tell("queued", flight, num_tokens=len(flight.request.prompt_token_ids))
        self._dispatch(flight)

    def close(self, flight: Flight) -> None:
        """The flight is over, by its end or because nobody listens any more: nothing of it may stay anywhere."""
        self._flights.pop(flight.request.id, None)
        self._held.drop(flight)
        if flight.is_over:
            self._crew.tell("finish", flight, num_tokens=flight.num_given)
        else:
            self._crew.tell("abort", flight)
        if flight.worker_id is not None and not flight.is_over:
            self._crew.send(flight.worker_id, Abort([flight.request.id]))
        self._end_lease(flight)
        self._book_end(flight)

    def end_sequence(self, request_id: str, index: int) -> None:
        """This sequence ends here and on its worker; the rest of its request goes on."""
        flight = self._flights.get(request_id)
        if flight is None or index in flight.finished:
            return
        worker_id = flight.worker_id
        self._take(flight, [Delta(request_id, index, [], finish_reason="abort")])
        if worker_id is not None:
            over = flight.is_over
            self._crew.send(worker_id, Abort([request_id]) if over else EndSequence(request_id, index))

    # -- words of workers ---------------------------------------------------------------------------------------

    def hear(self, worker_id: str, message: Deltas | Prefilled) -> None:
        """A word of a living worker about requests."""
        match message:
            case Deltas(deltas):
                self._deltas(worker_id, deltas)
            case Prefilled():
                self._prefilled(worker_id, message)

    def leases_over(self, lease_ids: list[str]) -> None:
        """Their readers have what they wanted."""
        over = set(lease_ids)
        if not over:
            return
        for flight in self._flights.values():
            if flight.descriptor is not None and flight.descriptor.lease_id in over:
                flight.descriptor = None
                self._crew.tell("decode", flight)

    # -- workers that come and go -------------------------------------------------------------------------------

    def worker_left(self, worker_id: str, *, blamed: bool = True) -> None:
        """Its requests go elsewhere. By now the control plane knows (`Left`), the crew does not count it among the living,
        and has told them `PeerGone`. `blamed`: one of the requests may have been the cause."""
        for flight in self.flights():
            if flight.descriptor is not None and owner_of(flight.descriptor.lease_id) == worker_id:
                flight.descriptor = None
            if flight.worker_id == worker_id and not flight.is_over:
                self._end_lease(flight)
                flight.num_attempts += blamed
                if should_retry(flight.num_attempts):
                    self._decisions.hear(events.Lost(self._decisions.now(), flight.request.id))
                    self._dispatch(flight)
                else:
                    self._fail(flight, EngineError(f"{flight.num_attempts} workers died under this request"))

    def retry_held(self) -> None:
        """A worker is ready, wears another role, or was given up: look again at who waits."""
        for flight in self._held.take():
            self._dispatch(flight)

    # -- inside -------------------------------------------------------------------------------------------------

    def _prefilled(self, worker_id: str, message: Prefilled) -> None:
        flight = self._flights.get(message.request_id)
        if flight is None or flight.worker_id != worker_id or flight.is_over:
            if message.descriptor is not None:
                self._crew.send(worker_id, LeaseRelease([message.descriptor.lease_id]))
            return
        self._take(flight, message.first)
        self._crew.tell("prefill", flight, num_tokens=len(flight.request.prompt_token_ids))
        if message.descriptor is None:
            return
        where = self._book_prefilled(flight)
        if where is None:
            self._crew.send(worker_id, LeaseRelease([message.descriptor.lease_id]))
            self._dispatch(flight)
            return
        flight.worker_id, flight.stage = where, "decode"
        self._crew.tell(
            "handoff",
            flight,
            worker_id=worker_id,
            peer_id=where,
            num_tokens=message.descriptor.num_tokens,
        )
        if where == worker_id:
            # Its role was changed meanwhile: what it computed lies in its own prefix cache when the lease is over.
            self._crew.send(where, Submit(request=flight.request, resumed=flight.resumed))
            self._connector.release(message.descriptor)
            self._crew.tell("decode", flight)
            return
        flight.descriptor = message.descriptor
        self._crew.send(
            where, Submit(request=flight.request, resumed=flight.resumed, handoff=message.descriptor)
        )

    def _deltas(self, worker_id: str, deltas: list[Delta]) -> None:
        for delta in deltas:
            flight = self._flights.get(delta.request_id)
            if flight is None or flight.worker_id != worker_id:
                continue
            self._take(flight, [delta])
            if delta.token_ids and not flight.is_computed and not flight.is_over:
                self._book_prefilled(flight)

    def _dispatch(self, flight: Flight) -> None:
        """Give a flight to the worker that the control plane names, or let it wait for one."""
        flight.worker_id, flight.stage, flight.descriptor, flight.is_computed = None, "pending", None, False
        answer = self._ask(flight, is_resumed=bool(flight.resumed))
        if isinstance(answer, Refused) and flight.is_admitted:
            answer = self._ask(flight, is_resumed=True)  # it was taken in: it may be late but not be lost
        match answer:
            case Routed(route):
                self._send(flight, route)
            case Refused(reason):
                flight.is_closed = True  # the plane has counted it
                self._fail(flight, Overloaded(reason, retry_after_s=1, code="expected_late"))
            case _ if self._crew.can_decode():
                self._held.hold(flight)
            case _:
                self._fail(flight, Unavailable("no decode worker is left"))

    def _ask(self, flight: Flight, *, is_resumed: bool) -> object:
        given = max(map(len, flight.given)) if is_resumed else 0
        return self._decisions.hear(
            events.Arrived(
                self._decisions.now(),
                flight.request.id,
                len(flight.request.prompt_token_ids) + given,
                flight.names,
                is_resumed,
            )
        )

    def _send(self, flight: Flight, route: Route) -> None:
        flight.is_admitted = True
        flight.worker_id = route.prefill or route.decode
        flight.stage = "prefill" if route.prefill else "decode"
        self._crew.tell("route", flight, detail=route.reason)
        self._crew.send(
            flight.worker_id,
            Submit(request=flight.request, prefill_only=route.prefill is not None, resumed=flight.resumed),
        )

    def _take(self, flight: Flight, deltas: list[Delta]) -> None:
        now = self._decisions.now()
        for delta in deltas:
            flight.take(delta, now)
        if flight.is_over:
            self._book_end(flight)

    def _fail(self, flight: Flight, error: MorticeError) -> None:
        flight.fail(error)
        self._book_end(flight, failed=True)

    def _book_prefilled(self, flight: Flight) -> str | None:
        """Where the plane lets it decode."""
        flight.is_computed = True
        answer = self._decisions.hear(events.Prefilled(self._decisions.now(), flight.request.id))
        assert isinstance(answer, DecodeAt)
        return answer.worker_id

    def _book_end(self, flight: Flight, *, failed: bool = False) -> None:
        if flight.is_closed:
            return
        flight.is_closed = True
        first = flight.first_token_s
        self._decisions.hear(
            events.Ended(
                self._decisions.now(),
                flight.request.id,
                flight.num_given,
                None if first is None else first - flight.arrived_s,
                flight.tpot_s,
                failed,
            )
        )

    def _end_lease(self, flight: Flight) -> None:
        if flight.descriptor is not None:
            self._connector.release(flight.descriptor)
            flight.descriptor = None
