"""One worker under virtual time: chunked prefill beside continuous decode, as the engine's scheduler does it, by counts.

Decode is advanced in macro-steps: from one change of the batch to the next the time of k steps is a closed form (the context
grows by the batch each step), and a change in between cuts the macro-step at the next whole step. So the cost of a run grows
with requests, not with tokens. Rules are those of sched/batching.py: decode first, prompts with what is left of the token
budget in order of arrival, foreign KV accepted while less than 5 % of memory is on its way, the latest arrival preempted
where memory runs out. tests/sim compares it with that scheduler itself, step by step.
"""

import math
from collections import deque
from heapq import heapify, heappop, heappush

from mortice.sched.batching import ACCEPT_SHARE, LEND_SHARE
from mortice.sched.prefill_order import PrefillOrder
from mortice.sim.books import Books
from mortice.sim.boss import Boss
from mortice.sim.clock import Clock
from mortice.sim.decode_steps import DecodeSteps
from mortice.sim.link import Link
from mortice.sim.request import SimRequest
from mortice.sim.spread import StepDraws
from mortice.specs.worker_times import WorkerTimes


class SimWorker:
    __slots__ = (
        "_chunks", "_decode_steps", "_decoding", "_ends", "_is_ahead", "_is_ending", "_is_resting", "_joining",
        "_num_steps", "_pace", "_picked", "_start_s", "_ticket", "alive", "batch", "books", "boss", "boundary",
        "bridge", "busy_s", "clock", "context", "draws", "id", "into", "leased", "lends", "max_num_seqs", "moving",
        "num_leased_tokens", "num_moving_tokens", "num_preemptions", "num_prefill_tokens", "order", "out",
        "paused_until_s", "piped", "prefilling", "prompt_draws", "slow", "steps", "times", "token_budget", "waiting",
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
        self._decode_steps = DecodeSteps(times)
        self._ends = self._end
        self.token_budget, self.max_num_seqs = token_budget, max_num_seqs
        self.order = order
        self.lends = lends
        self.draws, self.prompt_draws = draws, prompt_draws
        self.boundary = 0.0  # of the length-aware order; set by the cluster
        self.out = Link(clock, bytes_per_s)
        self.into = Link(clock, bytes_per_s)
        self.alive = True
        self.slow = 1.0  # how much longer its steps take than they should
        self.paused_until_s = 0.0  # a role is being changed
        self.waiting: deque[SimRequest] = deque()  # prompts without memory
        self.prefilling: list[SimRequest] = []  # prompts with memory
        self.bridge: deque[SimRequest] = deque()  # their KV waits elsewhere
        self.moving: dict[int, SimRequest] = {}  # their KV is on its way here
        self.leased: dict[int, SimRequest] = {}  # their KV stands here and is wanted elsewhere
        self.num_moving_tokens = 0
        self.num_leased_tokens = 0
        self.batch = 0
        self.context = 0  # tokens of KV that a decode step reads
        self.steps = 0
        self.num_preemptions = 0
        self.busy_s = 0.0
        self.num_prefill_tokens = 0
        self._decoding: list[tuple[int, int, SimRequest]] = []  # (step of its last token, index, request)
        self._joining: list[SimRequest] = []  # from the next step on
        self._picked = 0  # prompts of the order's batch
        self._chunks: list[tuple[SimRequest, int]] = []
        self.piped: list[SimRequest] = []  # between two pipeline stages
        self._is_ending = False
        self._pace = 1.0  # of the running step
        # When the running macro-step began; ahead of now while the step before it is still under way.
        self._start_s = 0.0
        self._is_resting = False  # no step runs, and none begins before an instant
        self._is_ahead = False  # the tokens of that step before it are counted already
        self._num_steps = 0  # of the running macro-step; 0: idle
        self._ticket = -1

    # -- what comes in ------------------------------------------------------------------------------------------

    def submit(self, request: SimRequest) -> None:
        """Compute its prompt (and what it had given) here."""
        request.at = self
        request.stage = "prefill"
        request.since_s = self.clock.now_s
        request.tokens = request.known
        self.waiting.append(request)
        self.wake()

    def offer(self, request: SimRequest) -> None:
        """It decodes here; its KV waits at `request.kv_at`."""
        request.at = self
        request.stage = "bridge"
        request.since_s = self.clock.now_s
        self.bridge.append(request)
        self.wake()

    def stay(self, request: SimRequest) -> None:
        """It decodes where its prompt was computed: it joins the batch of the next step."""
        request.stage = "decode"
        request.moved_s = self.clock.now_s
        self._join(request)

    def arrived(self, request: SimRequest) -> None:
        """Its KV is here."""
        del self.moving[request.index]
        self.num_moving_tokens -= self.books.held(request)
        request.stage = "decode"
        request.moved_s = self.clock.now_s
        self.books.commit(request)
        self._join(request)
        self.wake()

    def not_arrived(self, request: SimRequest) -> None:
        """Its KV will not come: it is computed here."""
        if request.index in self.moving:
            del self.moving[request.index]
            self.num_moving_tokens -= self.books.held(request)
            self.books.release(request, 0)
        else:
            self.bridge.remove(request)
        self.submit(request)

    def let_go(self, request: SimRequest) -> None:
        """The lease on its KV is over."""
        if self.leased.pop(request.index, None) is not None:
            self.num_leased_tokens -= self.books.held(request)
            self.books.release(request, 0)
            self.wake()

    def lease(self, request: SimRequest) -> None:
        """Its KV stays until somebody fetched it, or has read it to the end."""
        self.leased[request.index] = request
        self.num_leased_tokens += self.books.held(request)
        request.is_lent = self.lends and self.num_leased_tokens <= LEND_SHARE * self.capacity

    def drop(self, request: SimRequest) -> None:
        """Its prompt was computed for nothing."""
        self.books.release(request, 0)

    def events(self) -> tuple[list[bytes], list[bytes]]:
        """Names of blocks stored and removed since the last call."""
        return self.books.events()

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

    def requests(self) -> list[SimRequest]:
        """All that are computed here or wait to be (not those whose KV is only kept)."""
        computing = [*(r for _, _, r in self._decoding), *self._joining, *self.piped]
        return [*self.waiting, *self.prefilling, *self.bridge, *self.moving.values(), *computing]

    @property
    def is_empty(self) -> bool:
        return not (self.leased or self.num_requests)

    @property
    def num_requests(self) -> int:
        queues = (self.waiting, self.prefilling, self.bridge, self.moving, self._joining, self.piped)
        return self.batch + sum(map(len, queues))

    def die(self) -> None:
        """Everything here is lost but the tokens that went out with whole steps."""
        if self.batch and self._num_steps:
            spent, done = self.clock.now_s - self._start_s, 0
            while not self._chunks and done < self._num_steps and self._lasts(done + 1) <= spent:
                done += 1
            if self._is_ahead and spent < 0:
                done = -1
            for finish_step, _, request in self._decoding:
                given = request.output_len - (finish_step - self.steps - done)
                request.given = max(request.given, given)
        self.alive = False
        self._ticket = -1
        self._num_steps = 0

    def cancel(self, request: SimRequest) -> None:
        """Forget it wherever it stands; a lease of another worker is the cluster's to end."""
        if request.stage == "prefill":
            if request in self.waiting:
                self.waiting.remove(request)
            else:  # a step that computes it goes on, for nothing
                (self.piped if request in self.piped else self.prefilling).remove(request)
                self.books.release(request, 0)
        elif request.stage == "bridge" and request in self.bridge:
            self.bridge.remove(request)
        elif request.stage == "moving":
            del self.moving[request.index]
            self.num_moving_tokens -= self.books.held(request)
            self.books.release(request, 0)
        elif request.stage == "decode":
            self._take_out(request)
        self.wake()

    def check(self) -> None:
        """Assert that memory and batch are accounted for by requests."""
        if len(self._decoding) != self.batch:
            raise AssertionError(f"{self.id}: a batch of {self.batch} has {len(self._decoding)} requests")
        grown = context = 0
        for finish_step, _, request in self._decoding:
            given = request.output_len - (finish_step - self.steps)
            grown += given - request.given
            context += request.prompt_len + given
        if context != self.context:
            raise AssertionError(f"{self.id}: contexts sum to {context}, not {self.context}")
        self.books.check(grown)

    # -- steps --------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed: plan if idle, cut a macro-step of pure decoding at its next whole step."""
        if not self.alive or self._is_ending:
            return
        if self._num_steps == 0:
            self._plan()
        elif not (self._chunks or self._is_resting) and (
            self._num_steps > 1 or self._start_s > self.clock.now_s
        ):
            if self.bridge and len(self._decoding) == self.batch:
                self._accept(self._until_boundary())
            if self.waiting or self.clock.now_s < self.paused_until_s:
                self._cut()
            elif self._joining:
                self._splice()

    def _join(self, request: SimRequest) -> None:
        """From the next step on it is in the batch."""
        self._joining.append(request)

    def _enter(self) -> None:
        steps, decoding = self.steps, self._decoding
        for request in self._joining:
            given = request.given
            request.finish_step = finish_step = steps + request.output_len - given
            heappush(decoding, (finish_step, request.index, request))
            self.context += request.prompt_len + given
        self.batch += len(self._joining)
        self._joining.clear()

    def _plan(self) -> None:
        now_s = self.clock.now_s
        self._is_ahead = self._is_resting = False
        if now_s < self.paused_until_s:
            self._rest(self.paused_until_s)
            return
        if self._joining:
            self._enter()
        if self.bridge:
            self._accept(0.0)
            if self._joining:  # what is read in place
                self._enter()
        chunks = self._choose() if self.waiting or self.prefilling else []
        if not chunks and not self.batch:
            return
        batch = self.batch
        if batch and self.books.free < batch:
            self._make_room()
            batch = self.batch
            if not chunks and not batch:
                self._plan()
                return
        times = self.times
        self._start_s = now_s
        self._pace = self.slow
        self._chunks = chunks
        if chunks:
            tokens = square = 0
            for request, count in chunks:
                before = request.prompt_len + request.given - request.tokens
                tokens += count
                square += count * (count + 2 * before)
            self.num_prefill_tokens += tokens
            duration = times.mixed_s(tokens, square, batch, self.context) * self._pace
            if self.prompt_draws is not None:
                duration *= self.prompt_draws.pace(now_s, duration)
            self._num_steps = 1
            if times.pp > 1 and not batch:
                self._pipeline(duration)
                return
        else:
            self._decode_on()
            return
        self._ticket = self.clock.at(now_s + duration, self._ends, None)

    def _decode_on(self) -> None:
        """A macro-step of the batch from `_start_s` on: until its first answer is done, or memory is."""
        batch = self.batch
        steps = self._decoding[0][0] - self.steps
        room = self.books.free // batch
        if steps > room:
            steps = room
        if self.draws is not None:
            steps = self._in_stretch(self.draws, steps)
        self._num_steps = steps
        lasts = self._decode_steps.last(steps, batch, self.context) * self._pace
        self._ticket = self.clock.at(self._start_s + lasts, self._ends, None)

    def _in_stretch(self, draws: StepDraws, steps: int) -> int:
        """So many of the next steps are of one pace, which is set; one that sees the pace change stands alone."""
        counts, batch, context = self._decode_steps, self.batch, self.context
        self._pace = self.slow * draws.pace(self._start_s, counts.last(1, batch, context) * self.slow)
        held = counts.within(draws.holds_s(self._start_s) / self.slow, batch, context)
        return max(1, min(steps, held))

    def _splice(self) -> None:
        """Who joins does so when the step that runs now is over; what follows is planned at once, without an event between
        (most events of a large run were such)."""
        steps = self._whole_steps()
        if steps >= self._num_steps and steps:
            return  # the macro-step ends then in any case
        if self.books.free < (steps + 1) * (self.batch + len(self._joining)):
            self._cut()
            return
        if steps:
            self._book_ahead(steps)
        self._enter()
        self._decode_on()

    def _book_ahead(self, steps: int) -> None:
        """Count so many steps of the running macro-step, the last of which is still under way."""
        batch, lasts = self.batch, self._lasts(steps)
        self._is_ahead = True
        self._start_s += lasts
        self.busy_s += lasts
        self.steps += steps
        self.context += steps * batch
        self.books.grow(steps * batch)

    def _take_out(self, request: SimRequest) -> None:
        """It leaves the batch with the step that runs now; its memory is free at once."""
        if request not in self._joining and self._num_steps and not (self._chunks or self._is_resting):
            steps = self._whole_steps()
            if steps < self._num_steps:
                if steps:
                    self._book_ahead(steps)
                self._remove(request)
                if self.batch:
                    self._decode_on()
                else:
                    self._rest(self._start_s)
                return
        self._remove(request)

    def _rest(self, until_s: float) -> None:
        """No step begins before."""
        self._is_resting = True
        self._num_steps = 1
        self._start_s = until_s
        self._ticket = self.clock.at(until_s, self._resume, None)

    def _lasts(self, steps: int) -> float:
        """Seconds of so many decode steps from the running macro-step's start."""
        return self._decode_steps.last(steps, self.batch, self.context) * self._pace

    def _until_boundary(self) -> float:
        """Seconds until the step that runs now is over."""
        return max(0.0, self._start_s + self._lasts(self._whole_steps()) - self.clock.now_s)

    def _cut(self) -> None:
        """End the macro-step with the step that runs now."""
        steps = self._whole_steps()
        if steps == 0:
            if not self._is_resting:
                self._rest(self._start_s)
        elif steps < self._num_steps:
            self._num_steps = steps
            self._ticket = self.clock.at(self._start_s + self._lasts(steps), self._ends, None)

    def _whole_steps(self) -> int:
        """Steps of the macro-step that are over when the one that runs now is."""
        spent_s = self.clock.now_s - self._start_s
        if spent_s < 0:
            return 0
        steps = self._decode_steps.until(spent_s / self._pace, self.batch, self.context)
        return steps if steps < self._num_steps else self._num_steps

    def _pipeline(self, duration: float) -> None:
        """Pipeline stages: the next batch may start after 1/pp of the time, this one is done after all of it."""
        done, self._chunks = self._chunks, []
        for request, count in done:
            request.tokens -= count
        ready = [request for request, _ in done if request.tokens == 0]
        for request in ready:
            self.prefilling.remove(request)
        if ready:
            self.piped += ready
            self.clock.at(self.clock.now_s + duration, self._piped, ready)
        self._ticket = self.clock.at(self.clock.now_s + duration / self.times.pp, self._ends, None)

    def _piped(self, ready: list[SimRequest]) -> None:
        if self.alive:
            self._is_ending = True
            for request in ready:
                if request in self.piped:  # its client is still there
                    self.piped.remove(request)
                    self._prompt_done(request)
            self._is_ending = False
            self.wake()

    def _resume(self, _: None) -> None:
        if self.clock.ticket == self._ticket:
            self._num_steps = 0
            self._plan()

    def _end(self, _: None) -> None:
        if self.clock.ticket != self._ticket:
            return  # it was cut, or the worker died
        self._is_ending = True  # what the cluster answers must not start a step before this one is booked
        self._advance(self._num_steps)
        self.busy_s += self.clock.now_s - self._start_s
        self._num_steps = 0
        chunks, self._chunks = self._chunks, []
        for request, count in chunks:
            request.tokens -= count
            if request.tokens == 0 and request.stage != "cancelled":
                self.prefilling.remove(request)
                self._prompt_done(request)
        self._is_ending = False
        if self.alive:
            self._plan()

    def _advance(self, steps: int) -> None:
        """The batch has so many tokens more each; some are done."""
        batch = self.batch
        if not batch:
            return
        self.steps += steps
        self.context += steps * batch
        self.books.grow(steps * batch)
        decoding = self._decoding
        while decoding and decoding[0][0] <= self.steps:
            request = heappop(decoding)[2]
            self._leave(request, request.output_len)
            request.end_s = self.clock.now_s
            self.boss.finished(request, self)

    def _leave(self, request: SimRequest, given: int) -> None:
        """It leaves the batch with so many tokens given; its memory goes back."""
        before, request.given = request.given, given
        self.batch -= 1
        self.context -= request.prompt_len + given
        self.books.release(request, given - before)

    def _prompt_done(self, request: SimRequest) -> None:
        self.books.commit(request)
        request.given += 1
        if math.isnan(request.first_s):
            request.first_s = self.clock.now_s
        if request.given >= request.output_len:
            self.books.release(request, 0)
            request.end_s = self.clock.now_s
            self.boss.finished(request, self)
        else:
            self.boss.first_or_next(request, self)

    def change_pace(self, slow: float) -> None:
        """Its steps take `slow` times as long as they should, from the next one on."""
        self.slow = slow
        self._settle()

    def _settle(self) -> None:
        """End a running macro-step of decoding with its present step."""
        if self._num_steps and not self._chunks and (self._num_steps > 1 or self._start_s > self.clock.now_s):
            self._cut()

    def _remove(self, request: SimRequest) -> None:
        """Take it out of the batch between two steps; what it was given so far counts."""
        if request in self._joining:
            self._joining.remove(request)
            self.books.release(request, 0)
            return
        self._decoding.remove((request.finish_step, request.index, request))
        heapify(self._decoding)
        self._leave(request, request.output_len - (request.finish_step - self.steps))

    # -- memory -------------------------------------------------------------------------------------------------

    def _accept(self, delay_s: float) -> None:
        """Foreign KV, while less than 5 % of memory is on its way and it fits. The engine accepts between two steps: in the
        middle of one the fetch starts `delay_s` later."""
        limit = ACCEPT_SHARE * self.books.capacity
        spare = self.batch * self.books.block_size
        while self.bridge and (self.num_moving_tokens < limit or not self.moving):
            request = self.bridge[0]
            slots = self.batch + len(self.prefilling) + len(self.moving)
            if slots >= self.max_num_seqs and slots:
                return
            works = self.batch or self.prefilling
            if works and self.waiting and self.waiting[0].arrival_s < request.arrival_s:
                return  # not before a prompt that came earlier and waits for memory
            if request.is_lent:
                has_room = self.books.admit_lent(request, spare + len(self._joining) * self.books.block_size)
            else:
                has_room = self.books.admit(request, request.known - 1, spare)
            if not has_room:
                if self._is_stuck():
                    self._decline(self.bridge.popleft())
                return
            self.bridge.popleft()
            request.accepted_s = self.clock.now_s
            if request.is_lent:  # it is read where it lies, from the next step on
                request.stage = "decode"
                request.moved_s = self.clock.now_s + delay_s
                self._joining.append(request)
                continue
            request.stage = "moving"
            self.moving[request.index] = request
            self.num_moving_tokens += self.books.held(request)
            self.boss.fetch(request, self, delay_s)

    def _is_stuck(self) -> bool:
        """Nothing here is going to make room: leases of this worker hold it (BatchScheduler._is_stuck)."""
        works = self.batch or self._joining or self.prefilling or self.moving or self.piped
        return not works and (not self.waiting or self.books.free < self.waiting[0].known)

    def _decline(self, request: SimRequest) -> None:
        """Give its lease back and compute it here when there is room."""
        self.boss.returned(request)
        request.stage = "prefill"
        request.since_s = self.clock.now_s
        request.tokens = request.known
        self.waiting.append(request)

    def _choose(self) -> list[tuple[SimRequest, int]]:
        """Prompt chunks of the next step: those with memory first, then new ones while memory, slots and budget last."""
        budget = self.token_budget - self.batch
        chunks: list[tuple[SimRequest, int]] = []
        for request in self.prefilling:
            if budget <= 0:
                return chunks
            count = request.tokens if request.tokens < budget else budget
            chunks.append((request, count))
            budget -= count
        if self.order is not None and self.waiting and not self.prefilling:
            self._bring_forward()
        waiting = self.waiting
        while waiting and budget > 0:
            request = waiting[0]
            running = self.batch + len(self.prefilling)
            if running + len(self.moving) >= self.max_num_seqs and running:
                break
            if not self.books.admit(request, request.known, running * self.books.block_size):
                break
            waiting.popleft()
            self.prefilling.append(request)
            request.tokens = request.known - min(request.hit, request.known - 1)
            if math.isnan(request.prefill_at_s):
                request.prefill_at_s = self.clock.now_s
            count = request.tokens if request.tokens < budget else budget
            chunks.append((request, count))
            budget -= count
            if self.order is not None and len(chunks) >= self._picked:
                break
        return chunks

    def _bring_forward(self) -> None:
        """The order's next batch to the head of the queue."""
        assert self.order is not None
        chosen = self.order.pick(self.waiting, self.clock.now_s, self.boundary)
        self._picked = len(chosen)
        if chosen != list(range(len(chosen))):
            picked = [self.waiting[i] for i in chosen]
            rest = set(chosen)
            self.waiting = deque([*picked, *(r for i, r in enumerate(self.waiting) if i not in rest)])

    def _make_room(self) -> None:
        """Preempt the latest arrivals until each of the others has room for a token."""
        while self.batch and self.books.free < self.batch:
            victim = max((r for _, _, r in self._decoding), key=lambda r: (r.arrival_s, r.index))
            self._remove(victim)
            if victim.kv_at is not None:
                self.boss.returned(victim)
            self.num_preemptions += 1
            victim.stage = "prefill"
            victim.tokens = victim.known
            victim.since_s = self.clock.now_s
            self.waiting.appendleft(victim)
