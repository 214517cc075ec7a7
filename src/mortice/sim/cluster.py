"""The simulated cluster: carries out, under virtual time, what the control plane of `sched` decides.

Requests, workers, links, faults and scaling are modelled here; every decision is `ControlPlane`'s, the same object that the
live cluster drives. Where a journal is given each event is written with its answer.
"""

import math
from collections.abc import Callable, Sequence

import msgspec

from mortice.sched.actions import Flip, Start, Stop, Undrain
from mortice.sched.controller import Decision
from mortice.sched.events import (
    Arrived,
    Cached,
    Ended,
    Event,
    Joined,
    Left,
    Lost,
    Misforecast,
    Ordered,
    Prefilled,
    Reported,
    Tick,
    Worn,
)
from mortice.sched.fleet import Role
from mortice.sched.plane import Answer, ControlPlane, DecodeAt, Held, Refused, Routed
from mortice.sched.recovery import RestartPolicy
from mortice.sim.books import CountedBooks, PooledBooks
from mortice.sim.clock import Clock
from mortice.sim.exact import ExactWorker
from mortice.sim.faults import Fault
from mortice.sim.plan import Body, Physics, Plan
from mortice.sim.request import Move, SimRequest
from mortice.sim.spread import StepDraws
from mortice.sim.worker import SimWorker
from mortice.specs.errors import RequestError

__all__ = ["Body", "Cluster", "Physics", "Plan"]

STUCK_S = 3600.0

Worker = SimWorker | ExactWorker


class Cluster:
    """One run. `run()` once, then read `requests`, `decisions`, `gpu_s` and the rest."""

    def __init__(
        self,
        plan: Plan,
        requests: Sequence[SimRequest],
        *,
        faults: Sequence[Fault] = (),
        journal: Callable[[Event, Answer | None], None] | None = None,
    ) -> None:
        if plan.setup.fetch is not None and plan.fidelity == "exact":
            raise RequestError(
                "cluster.fetch_prefixes is modelled by counts only; leave out --exact",
                param="cluster.fetch_prefixes",
            )
        self.plan = plan
        self.clock = Clock()
        self.requests = requests
        self.workers: dict[str, Worker] = {}
        self.roles: dict[str, Role] = {}
        self.decisions: list[Decision] = []
        self.events: list[tuple[float, str]] = []  # what happened to workers
        self.num_recomputed = 0  # hand-overs that failed and were computed again
        self.max_gpus = 0
        self.gpu_s = 0.0
        self._gpus = 0
        self._gpus_at_s = 0.0
        self._planes = [
            ControlPlane(msgspec.structs.replace(plan.setup, router=i), journal)
            for i in range(plan.physics.num_routers)
        ]
        self._records = journal is not None
        self._when_sent, self._when_received = self._sent, self._received
        self._draining: set[str] = set()
        self._held: list[SimRequest] = []
        self._ended = 0
        self._next = 0  # of `requests`
        self._made = 0
        self._progress = (0.0, -1.0)  # when something last moved, and how much had
        self._muted: dict[str, float] = {}  # worker -> until when
        self._skewed: dict[str, tuple[float, float]] = {}
        self._restarts: dict[str, RestartPolicy] = {}
        self._has_names = any(r.names for r in requests[:1000])
        for role, count in (("prefill", plan.prefill), ("decode", plan.decode), ("mixed", plan.mixed)):
            for _ in range(count):
                self._provision(role)  # type: ignore[arg-type]
        if plan.setup.pace.period_s > 0:
            self.clock.at(plan.setup.pace.period_s, self._tick, None)
        if plan.physics.report_s > 0:
            self.clock.at(plan.physics.report_s, self._report, None)
        for fault in faults:
            self.clock.at(fault.at_s, self._break, fault)
        for request in requests:
            if request.leaves_s < math.inf:
                self.clock.at(request.leaves_s, self._hang_up, request)

    @property
    def num_arrived(self) -> int:
        """Requests that have arrived so far."""
        return self._next

    @property
    def plane(self) -> ControlPlane:
        return self._planes[0]

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self, until_s: float = float("inf")) -> None:
        """To the end of all requests, or to an instant (a run may go on from there). AssertionError if it is stuck."""
        clock, requests, step = self.clock, self.requests, self.clock.step
        num = len(requests)
        while self._next < num and requests[self._next].arrival_s <= until_s:
            request = requests[self._next]
            arrival_s = request.arrival_s
            clock.run(arrival_s)  # an arrival comes before what happens at its instant
            self._next += 1
            clock.now_s = arrival_s
            self._arrive(request)
        while self._ended < num and step(until_s):
            pass
        if self._ended < num and clock.is_over:
            raise AssertionError(f"stuck: {num - self._ended} requests wait and nothing will happen")
        self._account(0)

    def _arrive(self, request: SimRequest) -> None:
        plane = self._plane_of(request)
        resumed = request.given > 0
        now_s = self.clock.now_s
        answer: Answer | None
        if self._records:
            answer = plane.hear(Arrived(now_s, request.id, request.known, request.names, resumed))
        else:
            answer = plane.arrived(now_s, request.id, request.known, request.names, resumed=resumed)
        request.told = False
        if type(answer) is Routed:
            route = answer.route
            worker = self.workers[route.prefill or route.decode]
            if route.fetch_from:
                self._send_prefix(request, self.workers[route.fetch_from], worker)
            else:
                worker.submit(request)
        elif isinstance(answer, Held):
            request.stage = "held"
            self._held.append(request)
        else:
            assert isinstance(answer, Refused)
            request.stage, request.why = "rejected", answer.reason
            self._ended += 1

    def _send_prefix(self, request: SimRequest, source: Worker, worker: Worker) -> None:
        """Another worker sends the beginning of its prompt, as far as it still has it; then the rest is computed."""
        assert isinstance(source, SimWorker)
        assert isinstance(worker, SimWorker)
        source.send_prefix(request)
        request.fetched = request.leased
        request.kv_at = source
        worker.await_prefix(request)
        self._send(request, source, worker, max(0, request.fetched - worker.books.cached(request)), 0.0)

    # -- what workers tell (sim/worker.py, Boss) ------------------------------------------------------------------

    def first_or_next(self, request: SimRequest, worker: Worker) -> None:
        if request.told:
            worker.stay(request)
            return
        request.told = True
        plane = self._plane_of(request)
        if self._records:
            answer = plane.hear(Prefilled(self.clock.now_s, request.id))
            assert isinstance(answer, DecodeAt)
            where = answer.worker_id
        else:
            where = plane.prefilled(request.id)
        if self._has_names:
            self._tell_cached(worker)
        if where == worker.id:
            worker.stay(request)
        elif where is None:
            worker.drop(request)
            self._arrive(request)
        else:
            worker.lease(request)
            request.kv_at = worker
            self.workers[where].offer(request)

    def fetch(self, request: SimRequest, worker: Worker, delay_s: float) -> None:
        source = request.kv_at
        assert source is not None
        if not source.alive:
            self._fetch_failed(request)
            return
        self._send(request, source, worker, max(0, request.known - 1 - request.hit), delay_s)

    def _send(
        self, request: SimRequest, source: Worker, worker: Worker, num_tokens: int, delay_s: float
    ) -> None:
        num_bytes = num_tokens * source.times.kv_token_bytes
        base = self.plan.physics.transfer_base_s
        base += delay_s
        move = request.move = Move(request)
        source.out.send(num_bytes, self._when_sent, move, watched=True)
        limit = worker.into.bytes_per_s
        if limit > 0:
            worker.into.send(num_bytes + base * limit, self._when_received, move)
        elif worker.into.is_cut:
            worker.into.send(num_bytes, self._when_received, move)
        else:
            self.clock.at(self.clock.now_s + base, self._when_received, move)

    def finished(self, request: SimRequest, worker: Worker) -> None:
        request.stage = "finished"
        self._ended += 1
        plane = self._plane_of(request)
        ttft = request.first_s - request.arrival_s
        if self._records:
            plane.hear(Ended(self.clock.now_s, request.id, request.given, ttft, request.tpot_s))
        else:
            plane.ended(request.id, request.given, ttft, request.tpot_s)
        request.at = None
        if request.kv_at is not None:
            self.returned(request)
        if self._has_names:
            self._tell_cached(worker)
        if self._draining:
            self._retire(worker)

    def returned(self, request: SimRequest) -> None:
        source, request.kv_at = request.kv_at, None
        request.is_lent = False
        if source is not None and source.alive:
            source.let_go(request)
            if self._draining:
                self._retire(source)

    def _hang_up(self, request: SimRequest) -> None:
        """Its client is gone: it is forgotten wherever it stands, and counts as missed."""
        if request.stage in ("finished", "rejected"):
            return
        if request.arrival_s > self.clock.now_s or request.stage == "new":
            raise ValueError(f"request {request.id} leaves before it arrives")
        worker, source = request.at, request.kv_at
        if request.stage == "held":
            self._held.remove(request)
        else:
            self._stop_move(request, source, worker)
            worker.cancel(request)
            self.returned(request)
            request.end_s = self.clock.now_s
            ttft = None if math.isnan(request.first_s) else request.ttft_s
            plane = self._plane_of(request)
            plane.hear(Ended(self.clock.now_s, request.id, request.given, ttft, request.tpot_s))
        request.stage, request.at, request.end_s = "cancelled", None, self.clock.now_s
        self._ended += 1
        if worker is not None and self._draining:
            self._retire(worker)

    def _sent(self, move: Move) -> None:
        """The owner's end is through."""
        move.is_sent = True
        if move.is_received:
            self._moved(move)

    def _received(self, move: Move) -> None:
        """The reader's end is through. Where nothing else was sent at the same time so is the owner's."""
        move.is_received = True
        source = move.request.kv_at
        if move.request.move is move and (move.is_sent or (source is not None and source.out.poll(move))):
            self._moved(move)

    def _moved(self, move: Move) -> None:
        request = move.request
        if request.move is not move or request.at is None:
            return
        request.move = None
        source, request.kv_at = request.kv_at, None
        if request.stage == "fetching":
            request.at.prefix_arrived(request)
            self._tell_cached(request.at)
        else:
            request.at.arrived(request)
        if source is not None and source.alive:
            source.let_go(request)
            if self._draining:
                self._retire(source)

    def _fetch_failed(self, request: SimRequest) -> None:
        """The worker that waits for the KV computes it (sched/batching.py, not_arrived)."""
        source, request.kv_at = request.kv_at, None
        worker = request.at
        assert worker is not None
        self._stop_move(request, source, worker)
        if source is not None and source.alive:
            source.let_go(request)
        self.num_recomputed += 1
        worker.not_arrived(request)

    def _stop_move(self, request: SimRequest, source: Worker | None, worker: Worker | None) -> None:
        move, request.move = request.move, None
        if move is not None:
            for link in (source.out if source else None, worker.into if worker else None):
                if link is not None:
                    link.drop(move)

    # -- workers that come and go ---------------------------------------------------------------------------------

    def _provision(self, role: Role) -> None:
        """A worker that is there from now on."""
        self._account(self._body(role).times.gpus)
        self._welcome(self._new(role), role)

    def _body(self, role: Role) -> Body:
        return self.plan.prefill_body if role == "prefill" else self.plan.decode_body

    def _new(self, role: Role) -> Worker:
        body, block = self._body(role), self.plan.setup.block_size
        physics = self.plan.physics
        self._made += 1
        worker_id = f"w{self._made}"
        draws, prompt_draws = (
            None if spread is None else StepDraws(spread, physics.seed, name)
            for spread, name in ((physics.spread, worker_id), (physics.prompt_spread, f"{worker_id}/prompts"))
        )
        if self.plan.fidelity == "exact":
            return ExactWorker(
                worker_id,
                clock=self.clock,
                boss=self,
                times=body.times,
                block_size=block,
                token_budget=body.token_budget,
                max_num_seqs=body.max_num_seqs,
                bytes_per_s=body.bytes_per_s,
                order=body.order,
                lease_s=physics.lease_s,
                lends=physics.lends,
                draws=draws,
                prompt_draws=prompt_draws,
            )
        books = (PooledBooks if self._has_names else CountedBooks)(body.times.kv_tokens, block)
        return SimWorker(
            worker_id,
            clock=self.clock,
            boss=self,
            times=body.times,
            books=books,
            token_budget=body.token_budget,
            max_num_seqs=body.max_num_seqs,
            bytes_per_s=body.bytes_per_s,
            order=body.order,
            lends=physics.lends,
            draws=draws,
            prompt_draws=prompt_draws,
        )

    def _welcome(self, worker: Worker, role: Role) -> None:
        self.workers[worker.id] = worker
        self.roles[worker.id] = role
        blocks = worker.capacity // worker.block_size
        self._tell_all(Joined(self.clock.now_s, worker.id, role, blocks, self.plan.convertible))
        held, self._held = self._held, []
        for request in held:
            self._arrive(request)

    def _retire(self, worker: Worker) -> None:
        """A draining worker ends when nothing is left in it."""
        if worker.id in self._draining and worker.is_empty:
            self._draining.discard(worker.id)
            self._remove(worker)
            self.events.append((self.clock.now_s, f"{worker.id} stopped"))

    def _remove(self, worker: Worker) -> Role:
        worker.die()
        del self.workers[worker.id]
        self._account(-worker.times.gpus)
        self._tell_all(Left(self.clock.now_s, worker.id))
        return self.roles.pop(worker.id)

    def _account(self, change: int) -> None:
        now_s = self.clock.now_s
        self.gpu_s += self._gpus * (now_s - self._gpus_at_s)
        self._gpus += change
        self._gpus_at_s = now_s
        self.max_gpus = max(self.max_gpus, self._gpus)

    def _ready(self, role: Role) -> None:
        """A worker that was started serves from now on; its accelerators were counted from its start."""
        worker = self._new(role)
        self.events.append((self.clock.now_s, f"{worker.id} ready as {role}"))
        self._welcome(worker, role)

    # -- control ------------------------------------------------------------------------------------------------

    def _tick(self, _: None) -> None:
        self._watch()
        decision = self.plane.hear(Tick(self.clock.now_s))
        assert isinstance(decision, Decision)
        self.decisions.append(decision)
        demand = decision.demand
        for action in decision.actions:
            match action:
                case Flip(worker_id, role):
                    self._wear(worker_id, role)
                case Undrain(worker_id, role):
                    self._draining.discard(worker_id)
                    self._wear(worker_id, role)
                case Stop(worker_id):
                    self._draining.add(worker_id)
                    self._retire(self.workers[worker_id])
                case Start(role):
                    self._account(self._body(role).times.gpus)
                    self.clock.at(self.clock.now_s + self.plan.physics.start_s, self._ready, role)
        if demand is not None:
            for worker in self.workers.values():
                worker.boundary = demand.prompt_mean
        self.clock.at(self.clock.now_s + self.plan.setup.pace.period_s, self._tick, None)

    def _watch(self) -> None:
        """A cluster that has requests and does nothing for an hour is stuck."""
        done = float(self._ended + self._next)
        for worker in self.workers.values():
            done += worker.steps + worker.num_prefill_tokens
        if done != self._progress[1] or self._ended == self._next:
            self._progress = (self.clock.now_s, done)
        elif self.clock.now_s - self._progress[0] > STUCK_S:
            raise AssertionError(
                f"stuck: nothing moved for {STUCK_S:.0f} s, {self._next - self._ended} requests wait"
            )

    def _wear(self, worker_id: str, role: Role) -> None:
        worker = self.workers[worker_id]
        if self.roles[worker_id] != role:
            self.events.append((self.clock.now_s, f"{worker_id} from {self.roles[worker_id]} to {role}"))
            worker.paused_until_s = self.clock.now_s + self.plan.physics.flip_s
            worker.token_budget = self._body(role).token_budget
        self.roles[worker_id] = role
        for plane in self._planes[1:]:
            plane.hear(Worn(self.clock.now_s, worker_id, role))

    def _report(self, _: None) -> None:
        """Each worker says what it has, as of now; it is heard after the delay."""
        now_s = self.clock.now_s
        said = []
        for worker in self.workers.values():
            if self._muted.get(worker.id, 0.0) > now_s:
                continue
            until_s, skew = self._skewed.get(worker.id, (0.0, 0.0))
            at_s = now_s + (skew if until_s > now_s else 0.0)
            free = max(0, worker.free_tokens) // worker.block_size
            said.append(Reported(at_s, worker.id, worker.num_requests, free, worker.slow))
        self.clock.at(now_s + self.plan.physics.report_delay_s, self._heard, said)
        self.clock.at(now_s + self.plan.physics.report_s, self._report, None)

    def _heard(self, said: list[Reported]) -> None:
        for event in said:
            self._tell_all(event)

    def _tell_all(self, event: Event) -> None:
        for plane in self._planes:
            plane.hear(event)

    def _tell_cached(self, worker: Worker) -> None:
        stored, removed = worker.events()
        if stored or removed:
            self._tell_all(Cached(worker.id, stored, removed))

    def _plane_of(self, request: SimRequest) -> ControlPlane:
        planes = self._planes
        return planes[0] if len(planes) == 1 else planes[request.index % len(planes)]

    # -- faults -------------------------------------------------------------------------------------------------

    def _break(self, fault: Fault) -> None:
        if fault.kind == "forecast":
            answer = fault.factor if math.isfinite(fault.factor) else None
            self.plane.hear(Misforecast(self.clock.now_s, answer))
            return
        if not self.workers:
            return
        worker = list(self.workers.values())[fault.worker % len(self.workers)]
        until_s = self.clock.now_s + fault.lasts_s
        self.events.append((self.clock.now_s, f"{worker.id} {fault.kind}"))
        if fault.kind == "kill":
            self.kill(worker)
        elif fault.kind == "slow":
            worker.change_pace(fault.factor)
            self.clock.at(until_s, self._heal, worker)
        elif fault.kind == "mute":
            self._muted[worker.id] = until_s
        elif fault.kind == "skew":
            self._skewed[worker.id] = (until_s, fault.factor)
        else:
            worker.out.cut()
            worker.into.cut()
            self.clock.at(until_s, self._mend, worker)
            self.clock.at(self.clock.now_s + self.plan.physics.lease_s, self._expire, worker)

    def _heal(self, worker: Worker) -> None:
        worker.change_pace(1.0)

    def _mend(self, worker: Worker) -> None:
        worker.out.mend()
        worker.into.mend()

    def _expire(self, worker: Worker) -> None:
        """Heartbeats have not passed for a lease: what waits for KV over the cut port computes it instead."""
        if not worker.alive or not worker.out.is_cut:
            return
        for request in [*worker.leased, *worker.moving]:
            if request.kv_at is not None and request.stage in ("moving", "fetching"):
                self._fetch_failed(request)

    def kill(self, worker: Worker) -> None:
        """Its process dies: what it computed is lost but the tokens that went out; its requests go elsewhere, and a
        replacement starts."""
        lost, leased = worker.requests(), list(worker.leased)
        was_draining = worker.id in self._draining
        self._draining.discard(worker.id)
        for request in worker.moving:
            self._stop_move(request, request.kv_at, worker)
        role = self._remove(worker)
        if not was_draining:
            self._tell_all(Ordered(self.clock.now_s, role))
            policy = self._restarts.setdefault(role, RestartPolicy())
            delay = policy.died(became_ready=True, lived_s=policy.quick_s) or 0.0
            self._account(worker.times.gpus)
            self.clock.at(self.clock.now_s + delay + self.plan.physics.start_s, self._ready, role)
        for request in leased:
            if request.is_lent:  # memory that is mapped outlives its owner
                request.kv_at = None
            elif (
                request.at is not None
                and request.at.alive
                and request.stage in ("fetching", "bridge", "moving")
            ):
                self._fetch_failed(request)
        for request in lost:
            source, request.kv_at = request.kv_at, None
            if source is not None and source.alive:
                source.let_go(request)
                self._retire(source)
            self._plane_of(request).hear(Lost(self.clock.now_s, request.id))
            request.attempts += 1
            request.at = None
            self._arrive(request)

    # -- what must always hold ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Conservation of requests and of memory, at any instant between two callbacks. Raises AssertionError."""
        places = {"held": 0, "working": 0, "ended": 0, "new": len(self.requests) - self._next}
        for request in self.requests[: self._next]:
            if request.stage in ("finished", "rejected", "cancelled"):
                places["ended"] += 1
            elif request.stage == "held":
                places["held"] += 1
            else:
                places["working"] += 1
        inside = sum(len(w.requests()) for w in self.workers.values())
        found = (self._ended, len(self._held), inside)
        if (places["ended"], places["held"], places["working"]) != found:
            raise AssertionError(f"requests are lost: {places}, {inside} in workers, {self._ended} ended")
        booked = sum(map(len, self._planes))
        if booked != places["working"]:
            raise AssertionError(
                f"the control plane knows {booked} requests, {places['working']} are under way"
            )
        for worker in self.workers.values():
            worker.check()
