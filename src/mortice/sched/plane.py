"""The control plane: every event of a cluster in, every decision out. Live cluster and simulator drive this same object.

Pure: no clock (events carry times), no I/O. What it decides it books at once, as if the driver had carried it out; where
that fails the driver says so with an event. `journal`, if given, hears each event with its answer (journal.py writes and
replays it).
"""

import math
from collections.abc import Callable, Sequence

import msgspec

from mortice.sched.actions import Flip, Standing, Start, Stop, Undrain
from mortice.sched.answers import Answer, DecodeAt, Held, Refused, Route, Routed
from mortice.sched.capacity import Capacity
from mortice.sched.controller import Controller, Decision
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
    StartFailed,
    Tick,
    Worn,
)
from mortice.sched.fleet import Role, Worker
from mortice.sched.observation import Tally
from mortice.sched.policy import policy
from mortice.sched.prefix_map import PrefixMap
from mortice.sched.router import Router
from mortice.sched.setup import Setup
from mortice.specs.worker_times import WorkerTimes

__all__ = ["Answer", "ControlPlane", "DecodeAt", "Held", "Refused", "Route", "Routed", "Setup"]

FIRST_GUESS_OUTPUT = 128.0  # tokens, until a request ended
SLOWEST = 20.0  # a reported slowdown beyond this, or below its inverse, is taken for it


class _Flight:
    __slots__ = ("context", "names", "on_decode", "on_prefill", "prompt_len", "work")

    def __init__(self, prompt_len: int, names: Sequence[bytes]) -> None:
        self.prompt_len = prompt_len
        self.names = names
        self.on_prefill: Worker | None = None  # where its prompt is being computed
        self.on_decode: Worker | None = None
        self.work = 0.0
        self.context = 0.0


class ControlPlane:
    def __init__(self, setup: Setup, journal: Callable[[Event, Answer | None], None] | None = None) -> None:
        self.setup = setup
        self.journal = journal
        self.prefixes = PrefixMap(setup.block_size)
        self.router = Router(
            local_prefill_tokens=setup.local_prefill_tokens,
            prefixes=self.prefixes,
            times=setup.prefill_times,
            slo=setup.slo,
            decode_times=setup.decode_times,
            fetch=setup.fetch,
        )
        self.fleet = self.router.new_fleet(setup.router)
        ttft, tpot = setup.slo.ttft_ms, setup.slo.tpot_ms
        self.tally = Tally(ttft / 1e3 if ttft else math.inf, tpot / 1e3 if tpot else math.inf)
        self.starting: dict[Role, int] = {"prefill": 0, "decode": 0, "mixed": 0}
        self._controller = _controller(setup)
        self._bends = setup.policy == "mortice"  # its decode workers are all convertible
        self._flights: dict[str, _Flight] = {}
        self._expected_output = FIRST_GUESS_OUTPUT
        self._expected_square = 2 * FIRST_GUESS_OUTPUT**2
        self._last_tick_s: float | None = None
        self._spoiled = 0  # reports since the last tick that were no numbers

    def __len__(self) -> int:
        """Requests that are routed and not ended."""
        return len(self._flights)

    def hear(self, event: Event) -> Answer | None:
        """Any event. The methods below do the same without the struct, where nothing is recorded."""
        answer = self._hear(event)
        if self.journal is not None:
            self.journal(event, answer)
        return answer

    def _hear(self, event: Event) -> Answer | None:
        match event:
            case Arrived(at_s, request_id, prompt_len, names, resumed):
                return self.arrived(at_s, request_id, prompt_len, names, resumed=resumed)
            case Prefilled(at_s, request_id):
                return DecodeAt(self.prefilled(request_id))
            case Ended():
                self.ended(event.request_id, event.output_len, event.ttft_s, event.tpot_s, event.failed)
            case Tick(at_s):
                return self.tick(at_s)
            case Reported():
                self.reported(event)
            case Lost(_, request_id):
                self.lost(request_id)
            case _:
                self._of_workers(event)
        return None

    def _of_workers(self, event: Event) -> None:
        match event:
            case Cached(worker_id, stored, removed):
                self.prefixes.update(worker_id, stored, removed)
            case Joined():
                self.starting[event.role] = max(0, self.starting[event.role] - 1)
                self.fleet.join(
                    event.worker_id,
                    event.role,
                    event.num_blocks,
                    convertible=event.convertible or self._bends,
                )
            case Left(_, worker_id):
                self.fleet.leave(worker_id)
                self.prefixes.drop(worker_id)
            case Ordered(_, role):
                self.starting[role] += 1
            case StartFailed(_, role):
                self.starting[role] = max(0, self.starting[role] - 1)
            case Misforecast(_, answer):
                self._controller.break_forecast(math.nan if answer is None else answer)
            case Worn(_, worker_id, role):
                if worker_id in self.fleet.workers:
                    self.fleet.wear(self.fleet.workers[worker_id], role)

    # -- requests -----------------------------------------------------------------------------------------------

    def arrived(
        self, at_s: float, request_id: str, prompt_len: int, names: Sequence[bytes], *, resumed: bool = False
    ) -> Routed | Refused | Held:
        if request_id in self._flights:
            raise AssertionError(f"request {request_id} arrived twice")
        fleet, router = self.fleet, self.router
        if resumed:
            worker = router.place_decode(names, fleet)
            route = (
                None
                if worker is None
                else Route(None, worker.worker_id, "recovery", work=router.work(prompt_len))
            )
        else:
            route = router.place(prompt_len, names, fleet, now_s=at_s)
        if route is None:
            return Held()
        if not resumed:
            refusal = self.setup.admit.refusal(
                route, self.setup.slo, len(self._flights), in_seconds=router.times is not None
            )
            if refusal:
                self.tally.arrived(prompt_len, prompt_len)
                self.tally.ended(0, math.inf, None)
                return Refused(refusal)
        flight = _Flight(prompt_len, names)
        self._flights[request_id] = flight
        worker = fleet.workers[route.prefill or route.decode]
        flight.on_prefill, flight.work = worker, route.work
        worker.num_prefilling += 1
        worker.prefill_work += route.work
        fleet.typical_work += 0.02 * (route.work - fleet.typical_work)
        if route.fetch_from:
            router.send(fleet.workers[route.fetch_from], route.fetch_tokens, at_s)
        if route.prefill is None:
            flight.on_decode, flight.context = worker, prompt_len + self._expected_output / 2
            worker.context_tokens += flight.context
            router.owe(worker, route.work, at_s)
        fleet.touch(worker)
        if not resumed:
            cached = self.prefixes.cached_tokens(worker.worker_id, names) if names else 0
            cached += route.fetch_tokens
            self.tally.arrived(prompt_len, prompt_len - cached)
        return Routed(route)

    def prefilled(self, request_id: str) -> str | None:
        """The worker where it decodes: the one that computed it, if it was routed there to stay."""
        flight = self._flights.get(request_id)
        if flight is None:
            return None
        self._prefill_over(flight)
        worker = flight.on_decode
        if worker is None:
            worker = self.router.place_decode(flight.names, self.fleet)
            if worker is None:
                del self._flights[request_id]
                return None
            flight.on_decode, flight.context = worker, flight.prompt_len + self._expected_output / 2
            worker.context_tokens += flight.context
        worker.num_decoding += 1
        self.fleet.touch(worker)
        return worker.worker_id

    def lost(self, request_id: str) -> None:
        """Forget it: its worker is gone or gave it up."""
        flight = self._flights.pop(request_id, None)
        if flight is not None:
            self._over(flight)

    def ended(
        self,
        request_id: str,
        output_len: int,
        ttft_s: float | None,
        tpot_s: float | None,
        failed: bool = False,
    ) -> None:
        flight = self._flights.pop(request_id, None)
        if flight is not None:
            self._over(flight)
        if failed or ttft_s is None:
            self.tally.ended(output_len, math.inf, None)
        else:
            self.tally.ended(output_len, ttft_s, tpot_s)
            self._expected_output += 0.02 * (output_len - self._expected_output)
            self._expected_square += 0.02 * (float(output_len) * output_len - self._expected_square)
            self.router.expected_output = self._expected_output
            self.router.output_uneven = max(1.01, self._expected_square / self._expected_output**2)

    def _prefill_over(self, flight: _Flight) -> None:
        worker = flight.on_prefill
        if worker is None:
            return
        flight.on_prefill = None
        worker.num_prefilling -= 1
        # Sums of floats drift: an empty queue is exactly empty.
        worker.prefill_work = worker.prefill_work - flight.work if worker.num_prefilling else 0.0
        self.fleet.touch(worker)

    def _over(self, flight: _Flight) -> None:
        was_decoding = flight.on_prefill is None
        if not was_decoding:
            self._prefill_over(flight)
        worker = flight.on_decode
        if worker is not None:
            worker.num_decoding -= was_decoding
            worker.context_tokens = worker.context_tokens - flight.context if worker.num_assigned else 0.0
            self.fleet.touch(worker)

    # -- workers ------------------------------------------------------------------------------------------------

    def reported(self, event: Reported) -> None:
        worker = self.fleet.workers.get(event.worker_id)
        if worker is None:
            return
        slowdown = worker.slowdown if event.slowdown is None else event.slowdown
        if not math.isfinite(slowdown) or slowdown <= 0 or event.free_blocks < 0 or event.num_requests < 0:
            self._spoiled += 1
            return
        slowdown = min(SLOWEST, max(1 / SLOWEST, slowdown))
        self.fleet.report(worker, event.at_s, event.num_requests, event.free_blocks, slowdown)

    def standing(self) -> list[Standing]:
        return [
            Standing(w.worker_id, w.role, w.prefill_work + w.num_assigned, not w.accepts)
            for w in self.fleet.workers.values()
        ]

    def tick(self, at_s: float) -> Decision:
        """Take the interval's figures and decide. What is ordered is booked: flips at once, starts as starting."""
        interval = at_s - self._last_tick_s if self._last_tick_s is not None else self.setup.pace.period_s
        self._last_tick_s = at_s
        ages = [at_s - w.reported_at_s for w in self.fleet.workers.values() if math.isfinite(w.reported_at_s)]
        seen = self.tally.observe(at_s, interval, self.fleet, {**self.starting}, self.setup.block_size)
        seen = msgspec.structs.replace(
            seen, report_age_s=max(0.0, max(ages, default=0.0)), num_spoiled=self._spoiled
        )
        self._spoiled = 0
        decision = self._controller.decide(seen, self.standing(), self.starting)
        for action in decision.actions:
            match action:
                case Flip(worker_id, role) | Undrain(worker_id, role):
                    self.fleet.wear(self.fleet.workers[worker_id], role)
                case Stop(worker_id):
                    self.fleet.drain(self.fleet.workers[worker_id])
                case Start(role):
                    self.starting[role] += 1
        return decision


def _controller(setup: Setup) -> Controller:
    times = setup.decode_times
    if times is None:
        if setup.policy not in ("static", "reactive"):
            raise ValueError(f"policy {setup.policy} needs the workers' times")
        times = WorkerTimes(
            prefill_base_s=1,
            prefill_token_s=1,
            decode_base_s=1,
            decode_sequence_s=1,
            decode_context_s=1,
            kv_tokens=1,
        )
    capacity = Capacity(
        prefill=setup.prefill_times or times,
        decode=times,
        slo=setup.slo,
        token_budget=setup.token_budget,
    )
    return Controller(policy(setup.policy, capacity), setup.bounds, setup.pace)
