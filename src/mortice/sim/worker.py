"""One worker under virtual time: chunked prefill beside continuous decode, as the engine's scheduler does it, by counts.

Rules are those of sched/batching.py: decode first, prompts with what is left of the token budget in order of arrival,
foreign KV accepted while less than 5 % of memory is on its way, the latest arrival preempted where memory runs out. A change
in the middle of a macro-step of decoding (decode_batch.py) cuts it at its next whole step. tests/sim compares it with that
scheduler itself, step by step.
"""

import math

from mortice.sched.prefill_order import PrefillOrder
from mortice.sim.books import Books
from mortice.sim.boss import Boss
from mortice.sim.clock import Clock
from mortice.sim.decode_batch import DecodeBatch
from mortice.sim.handover import Handover
from mortice.sim.link import Link
from mortice.sim.prompt_queue import Chunk, PromptQueue
from mortice.sim.request import SimRequest
from mortice.sim.spread import StepDraws
from mortice.specs.worker_times import WorkerTimes


class SimWorker:
    __slots__ = (
        "_chunks", "_draws", "_ends", "_handover", "_is_ending", "_is_resting", "_prompt_draws", "_ticket", "alive",
        "batch", "books", "boss", "clock", "id", "into", "max_num_seqs", "num_preemptions", "num_prefill_tokens", "out",
        "paused_until_s", "prompts", "slow", "times", "token_budget",
    )  # fmt: skip

    def __init__(
        self,
        worker_id: str,
        *,
        clock: Clock,
        boss: Boss,
        times: WorkerTimes,
        books: Books,
        token_budget: int,
        max_num_seqs: int,
        bytes_per_s: float,
        order: PrefillOrder | None = None,
        lends: bool = False,
        draws: StepDraws | None = None,
        prompt_draws: StepDraws | None = None,
    ) -> None:
        self.id = worker_id
        self.clock, self.boss, self.times, self.books = clock, boss, times, books
        self.batch = DecodeBatch(times)
        self.prompts = PromptQueue(order)
        self._handover = Handover(books, lends)
        self._draws, self._prompt_draws = draws, prompt_draws
        self.token_budget, self.max_num_seqs = token_budget, max_num_seqs
        self.out = Link(clock, bytes_per_s)
        self.into = Link(clock, bytes_per_s)
        self.alive = True
        self.slow = 1.0  # how much longer its steps take than they should
        self.paused_until_s = 0.0  # a role is being changed
        self.num_preemptions = 0
        self.num_prefill_tokens = 0
        self._chunks: list[Chunk] = []  # of the running step
        self._is_ending = False
        self._is_resting = False  # no step runs, and none begins before an instant
        self._ticket = -1
        self._ends = self._end

    # -- what comes in ------------------------------------------------------------------------------------------

    def submit(self, request: SimRequest) -> None:
        """Compute its prompt (and what it had given) here."""
        request.at = self
        self.prompts.add(request, self.clock.now_s)
        self.wake()

    def offer(self, request: SimRequest) -> None:
        """It decodes here; its KV waits at `request.kv_at`."""
        request.at = self
        request.stage = "bridge"
        request.since_s = self.clock.now_s
        self._handover.bridge.append(request)
        self.wake()

    def stay(self, request: SimRequest) -> None:
        """It decodes where its prompt was computed: it joins the batch of the next step."""
        request.stage = "decode"
        request.moved_s = self.clock.now_s
        self.batch.joining.append(request)

    def arrived(self, request: SimRequest) -> None:
        """Its KV is here."""
        self._handover.end(request)
        request.stage = "decode"
        request.moved_s = self.clock.now_s
        self.books.commit(request)
        self.batch.joining.append(request)
        self.wake()

    def await_prefix(self, request: SimRequest) -> None:
        """The beginning of its prompt is being sent here."""
        request.at = self
        request.stage = "fetching"
        request.since_s = self.clock.now_s
        self._handover.fetching[request] = None

    def prefix_arrived(self, request: SimRequest) -> None:
        """It stands in the cache now, and the rest is computed."""
        self.books.take_in(request, request.fetched)
        del self._handover.fetching[request]
        self.submit(request)

    def send_prefix(self, request: SimRequest) -> None:
        """What is cached here of its prompt stays until it was sent."""
        self._handover.send_prefix(request)

    def not_arrived(self, request: SimRequest) -> None:
        """Its KV will not come: it is computed here."""
        if request in self._handover.fetching:
            del self._handover.fetching[request]
        elif request in self._handover.moving:
            self._handover.end(request)
            self.books.release(request, request.booked, 0)
        else:
            self._handover.bridge.remove(request)
        self.submit(request)

    def lease(self, request: SimRequest) -> None:
        """Its KV stays here for the worker where it decodes."""
        self._handover.lease(request)

    def let_go(self, request: SimRequest) -> None:
        """The lease on its KV is over."""
        if self._handover.let_go(request):
            self.wake()

    def drop(self, request: SimRequest) -> None:
        """Its prompt was computed for nothing."""
        self.books.release(request, request.booked, 0)

    def cancel(self, request: SimRequest) -> None:
        """Forget it wherever it stands; a lease of another worker is the cluster's to end."""
        if request.stage == "prefill":
            if self.prompts.remove(request):
                self.books.release(request, request.booked, 0)
        elif request.stage == "bridge" and request in self._handover.bridge:
            self._handover.bridge.remove(request)
        elif request.stage == "fetching":
            del self._handover.fetching[request]
        elif request.stage == "moving":
            self._handover.end(request)
            self.books.release(request, request.booked, 0)
        elif request.stage == "decode":
            self._take_out(request)
        self.wake()

    def change_pace(self, slow: float) -> None:
        """Its steps take `slow` times as long as they should, from the next one on."""
        self.slow = slow
        if self._is_macro():
            self._cut()

    def die(self) -> None:
        """Everything here is lost but the tokens that went out with whole steps."""
        batch = self.batch
        if batch.size and batch.num_steps:
            done = 0 if self._chunks else batch.steps_given(self.clock.now_s)
            for request in batch.requests():
                request.given = max(request.given, batch.given(request) + done)
        self.alive = False
        self._ticket = -1
        batch.num_steps = 0

    # -- what is here -------------------------------------------------------------------------------------------

    def requests(self) -> list[SimRequest]:
        """All that are computed here or wait to be (not those whose KV is only kept)."""
        prompts, handover, batch = self.prompts, self._handover, self.batch
        queued = [*handover.fetching, *prompts.waiting, *prompts.running, *handover.bridge, *handover.moving]
        return [*queued, *batch.requests(), *batch.joining, *prompts.piped]

    @property
    def num_requests(self) -> int:
        prompts, handover, batch = self.prompts, self._handover, self.batch
        queued = len(prompts.waiting) + len(prompts.running) + len(prompts.piped)
        incoming = len(handover.fetching) + len(handover.bridge) + len(handover.moving)
        return queued + incoming + len(batch.joining) + batch.size

    @property
    def is_empty(self) -> bool:
        return not (self._handover.leased or self.num_requests)

    @property
    def leased(self) -> dict[SimRequest, None]:
        """Those whose KV stands here and is wanted elsewhere."""
        return self._handover.leased

    @property
    def moving(self) -> list[SimRequest]:
        """Those whose KV, or part of it, is on its way here."""
        return [*self._handover.moving, *self._handover.fetching]

    @property
    def boundary(self) -> float:
        """Between short prompts and long ones, of the length-aware order. Tokens."""
        return self.prompts.boundary

    @boundary.setter
    def boundary(self, tokens: float) -> None:
        self.prompts.boundary = tokens

    @property
    def block_size(self) -> int:
        return self.books.block_size

    @property
    def capacity(self) -> int:
        """Tokens of KV."""
        return self.books.capacity

    @property
    def free_tokens(self) -> int:
        return self.books.free

    @property
    def steps(self) -> int:
        return self.batch.steps

    @property
    def busy_s(self) -> float:
        return self.batch.busy_s

    def events(self) -> tuple[list[bytes], list[bytes]]:
        """Names of blocks stored and removed since the last call."""
        return self.books.events()

    def check(self) -> None:
        """Assert that memory and batch are accounted for by requests."""
        try:
            grown = self.batch.check()
            prompts, batch, handover = self.prompts, self.batch, self._handover
            held = [*prompts.running, *prompts.piped, *handover.moving, *batch.joining, *batch.requests()]
            booked = sum(r.booked for r in held) + sum(r.leased for r in handover.leased)
            self.books.check(booked, grown)
        except AssertionError as error:
            raise AssertionError(f"{self.id}: {error}") from error

    # -- steps --------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed: plan if idle, cut a macro-step of pure decoding at its next whole step."""
        if not self.alive or self._is_ending:
            return
        batch = self.batch
        if batch.num_steps == 0:
            self._plan()
        elif self._is_macro() and not self._is_resting:
            now_s = self.clock.now_s
            if self._handover.bridge:
                self._accept(batch.until_boundary(now_s))
            if self.prompts.waiting or now_s < self.paused_until_s:
                self._cut()
            elif batch.joining:
                self._splice()

    def _is_macro(self) -> bool:
        """What runs, or begins when the step before is over, can be cut: steps that only decode."""
        batch = self.batch
        if batch.num_steps == 0 or self._chunks:
            return False
        return batch.num_steps > 1 or batch.start_s > self.clock.now_s

    def _plan(self) -> None:
        batch, prompts, now_s = self.batch, self.prompts, self.clock.now_s
        batch.is_ahead = self._is_resting = False
        if now_s < self.paused_until_s:
            self._rest(self.paused_until_s)
            return
        if batch.joining:
            batch.take_in()
        if self._handover.bridge:
            self._accept(0.0)
            if batch.joining:  # what is read in place
                batch.take_in()
        chunks: list[Chunk] = []
        if prompts.waiting or prompts.running:
            slots = self.max_num_seqs - len(self._handover.moving)
            chunks = prompts.choose(self.token_budget - batch.size, batch.size, slots, self.books, now_s)
        if batch.size and self.books.free < batch.size:
            self._make_room()
            if not chunks and not batch.size:
                self._plan()
                return
        if chunks:
            self._mixed(chunks)
        elif batch.size:
            batch.start_s = now_s
            self._decode_on()

    def _mixed(self, chunks: list[Chunk]) -> None:
        """One step with prompts in it."""
        batch, now_s = self.batch, self.clock.now_s
        tokens = square = 0
        for request, count in chunks:
            before = request.prompt_len + request.given - request.tokens
            tokens += count
            square += count * (count + 2 * before)
        self.num_prefill_tokens += tokens
        duration = self.times.mixed_s(tokens, square, batch.size, batch.context) * self.slow
        if self._prompt_draws is not None:
            duration *= self._prompt_draws.pace(now_s, duration)
        batch.start_s = now_s
        batch.num_steps = 1
        if self.times.pp > 1 and not batch.size:
            self._pipeline(chunks, duration)
        else:
            self._chunks = chunks
            self._ticket = self.clock.at(now_s + duration, self._ends, None)

    def _decode_on(self) -> None:
        """A macro-step of the batch from its `start_s` on."""
        ends_s = self.batch.plan(self.books.free, self._draws, self.slow)
        self._ticket = self.clock.at(ends_s, self._ends, None)

    def _splice(self) -> None:
        """Who joins does so when the step that runs now is over; what follows is planned at once, without an event between
        (most events of a large run were such)."""
        batch = self.batch
        steps = batch.whole_steps(self.clock.now_s)
        if steps >= batch.num_steps and steps:
            return  # the macro-step ends then in any case
        if self.books.free < (steps + 1) * (batch.size + len(batch.joining)):
            self._cut()
            return
        if steps:
            self.books.grow(batch.book_ahead(steps))
        batch.take_in()
        self._decode_on()

    def _cut(self) -> None:
        """End the macro-step with the step that runs now."""
        batch = self.batch
        steps = batch.whole_steps(self.clock.now_s)
        if steps == 0:
            if not self._is_resting:
                self._rest(batch.start_s)
        elif steps < batch.num_steps:
            batch.num_steps = steps
            self._ticket = self.clock.at(batch.start_s + batch.lasts(steps), self._ends, None)

    def _rest(self, until_s: float) -> None:
        """No step begins before."""
        self._is_resting = True
        self.batch.num_steps = 1
        self.batch.start_s = until_s
        self._ticket = self.clock.at(until_s, self._resume, None)

    def _resume(self, _: None) -> None:
        if self.clock.ticket == self._ticket:
            self.batch.num_steps = 0
            self._plan()

    def _end(self, _: None) -> None:
        if self.clock.ticket != self._ticket:
            return  # it was cut, or the worker died
        self._is_ending = True  # what the cluster answers must not start a step before this one is booked
        batch = self.batch
        if batch.size:
            self._advance(batch.num_steps)
        batch.busy_s += self.clock.now_s - batch.start_s
        batch.num_steps = 0
        chunks = self._chunks
        if chunks:
            self._chunks = []
            for request, count in chunks:
                request.tokens -= count
                if request.tokens == 0 and request.stage != "cancelled":
                    self.prompts.running.remove(request)
                    self._prompt_done(request)
        self._is_ending = False
        if self.alive:
            self._plan()

    def _advance(self, steps: int) -> None:
        """The batch has so many tokens more each; some are done."""
        batch, books, now_s = self.batch, self.books, self.clock.now_s
        books.grow(batch.advance(steps))
        while (request := batch.first_finished()) is not None:
            books.release(request, request.booked, batch.pop_finished())
            request.end_s = now_s
            self.boss.finished(request, self)

    def _prompt_done(self, request: SimRequest) -> None:
        self.books.commit(request)
        request.given += 1
        if math.isnan(request.first_s):
            request.first_s = self.clock.now_s
        if request.given >= request.output_len:
            self.books.release(request, request.booked, 0)
            request.end_s = self.clock.now_s
            self.boss.finished(request, self)
        else:
            self.boss.first_or_next(request, self)

    def _pipeline(self, chunks: list[Chunk], duration: float) -> None:
        """Pipeline stages: the next batch may start after 1/pp of the time, this one is done after all of it."""
        now_s, prompts = self.clock.now_s, self.prompts
        for request, count in chunks:
            request.tokens -= count
        ready = [request for request, _ in chunks if request.tokens == 0]
        for request in ready:
            prompts.running.remove(request)
        if ready:
            prompts.piped += ready
            self.clock.at(now_s + duration, self._piped, ready)
        self._ticket = self.clock.at(now_s + duration / self.times.pp, self._ends, None)

    def _piped(self, ready: list[SimRequest]) -> None:
        if self.alive:
            self._is_ending = True
            for request in ready:
                if request in self.prompts.piped:  # its client is still there
                    self.prompts.piped.remove(request)
                    self._prompt_done(request)
            self._is_ending = False
            self.wake()

    # -- memory -------------------------------------------------------------------------------------------------

    def _accept(self, delay_s: float) -> None:
        """Foreign KV, while less than 5 % of memory is on its way and it fits. The engine accepts between two steps: in the
        middle of one the fetch starts `delay_s` later."""
        batch, books, handover, prompts = self.batch, self.books, self._handover, self.prompts
        spare = batch.size * books.block_size
        while handover.may_accept():
            request = handover.bridge[0]
            slots = batch.size + len(prompts.running) + len(handover.moving)
            if slots >= self.max_num_seqs and slots:
                return
            works = batch.size or prompts.running
            if works and prompts.waiting and prompts.waiting[0].arrival_s < request.arrival_s:
                return  # not before a prompt that came earlier and waits for memory
            if request.is_lent:
                has_room = books.admit_lent(request, spare + len(batch.joining) * books.block_size)
            else:
                has_room = books.admit(request, request.prompt_len + request.given - 1, spare)
            if not has_room:
                if self._is_stuck():
                    self._decline(handover.bridge.popleft())
                return
            handover.bridge.popleft()
            request.accepted_s = self.clock.now_s
            if request.is_lent:  # it is read where it lies, from the next step on
                request.stage = "decode"
                request.moved_s = self.clock.now_s + delay_s
                batch.joining.append(request)
            else:
                handover.begin(request)
                self.boss.fetch(request, self, delay_s)

    def _is_stuck(self) -> bool:
        """Nothing here is going to make room: leases of this worker hold it (BatchScheduler._is_stuck)."""
        batch, prompts = self.batch, self.prompts
        works = batch.size or batch.joining or prompts.running or self._handover.moving or prompts.piped
        return not works and (not prompts.waiting or self.books.free < prompts.waiting[0].known)

    def _decline(self, request: SimRequest) -> None:
        """Give its lease back and compute it here when there is room."""
        self.boss.returned(request)
        self.prompts.add(request, self.clock.now_s)

    def _make_room(self) -> None:
        """Preempt the latest arrivals until each of the others has room for a token."""
        batch = self.batch
        while batch.size and self.books.free < batch.size:
            victim = max(batch.requests(), key=lambda r: (r.arrival_s, r.index))
            self._remove(victim)
            if victim.kv_at is not None:
                self.boss.returned(victim)
            self.num_preemptions += 1
            self.prompts.add(victim, self.clock.now_s, first=True)

    def _take_out(self, request: SimRequest) -> None:
        """It leaves the batch with the step that runs now; its memory is free at once."""
        batch = self.batch
        if request not in batch.joining and batch.num_steps and not (self._chunks or self._is_resting):
            steps = batch.whole_steps(self.clock.now_s)
            if steps < batch.num_steps:
                if steps:
                    self.books.grow(batch.book_ahead(steps))
                self._remove(request)
                if batch.size:
                    self._decode_on()
                else:
                    self._rest(batch.start_s)
                return
        self._remove(request)

    def _remove(self, request: SimRequest) -> None:
        """Take it out of the batch between two steps; what it was given so far counts."""
        joining = self.batch.joining
        if request in joining:
            joining.remove(request)
            self.books.release(request, request.booked, 0)
        else:
            self.books.release(request, request.booked, self.batch.take_out(request))
