"""A worker under virtual time that steps the engine's own scheduler, pool and leases, token by token.

What sim/worker.py does by counts is done here by `BatchScheduler`, `BlockPool` and `LeaseTable`, unchanged: slower by the
length of the answers, and the measure of how far the counts are off. Tokens are made up: a prompt's are named by its prefix
blocks, so that equal prefixes hash alike.
"""

import math

from mortice.kv.leases import LeaseTable
from mortice.kv.pool import BlockPool
from mortice.sched.batching import LEND_SHARE, BatchScheduler
from mortice.sched.prefill_order import PrefillOrder
from mortice.sched.sequence import Arrival, Chunk, Sequence
from mortice.sim.boss import Boss
from mortice.sim.clock import Clock
from mortice.sim.link import Link
from mortice.sim.request import SimRequest
from mortice.sim.spread import StepDraws
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams
from mortice.specs.worker_times import WorkerTimes

GREEDY = SamplingParams()


class ExactWorker:
    """See `SimWorker`, whose shape it has."""

    def __init__(
        self,
        worker_id: str,
        *,
        clock: Clock,
        boss: Boss,
        times: WorkerTimes,
        block_size: int,
        token_budget: int,
        max_num_seqs: int,
        bytes_per_s: float,
        order: PrefillOrder | None = None,
        lease_s: float = 30.0,
        lends: bool = False,
        draws: StepDraws | None = None,
        prompt_draws: StepDraws | None = None,
    ) -> None:
        self.id = worker_id
        self.clock, self.boss, self.times = clock, boss, times
        self.block_size = block_size
        self.pool = BlockPool(max(1, times.kv_tokens // block_size))
        self.capacity = self.pool.num_blocks * block_size
        self.scheduler = BatchScheduler(
            self.pool,
            block_size=block_size,
            token_budget=token_budget,
            max_num_seqs=max_num_seqs,
            order=order,
        )
        self.leases = LeaseTable(lease_s)
        self.lends = lends
        self.draws, self.prompt_draws = draws, prompt_draws
        self.out = Link(clock, bytes_per_s)
        self.into = Link(clock, bytes_per_s)
        self.boundary = 0.0
        self.alive = True
        self.slow = 1.0
        self.paused_until_s = 0.0
        self.moving: dict[SimRequest, None] = {}
        self.leased: dict[SimRequest, None] = {}
        self.steps = 0
        self.busy_s = 0.0
        self.num_prefill_tokens = 0
        self._here: dict[str, tuple[SimRequest, Sequence]] = {}
        self._chunks: list[Chunk] = []
        self._ticket = -1
        self._is_busy = False
        self._is_ending = False
        self._start_s = 0.0

    @property
    def num_preemptions(self) -> int:
        return self.scheduler.num_preemptions

    @property
    def free_tokens(self) -> int:
        return self.pool.num_free * self.block_size

    @property
    def token_budget(self) -> int:
        return self.scheduler.token_budget

    @token_budget.setter
    def token_budget(self, tokens: int) -> None:
        self.scheduler.token_budget = tokens

    @property
    def num_requests(self) -> int:
        return len(self._here)

    @property
    def is_empty(self) -> bool:
        return not (self._here or self.leased)

    def requests(self) -> list[SimRequest]:
        return [request for request, _ in self._here.values()]

    # -- what comes in ------------------------------------------------------------------------------------------

    def submit(self, request: SimRequest) -> None:
        request.at, request.stage = self, "prefill"
        self.scheduler.add(self._enter(request))
        self.wake()

    def offer(self, request: SimRequest) -> None:
        request.at, request.stage = self, "bridge"
        arrival = Arrival([self._enter(request)], request.known - 1, request.id)
        if request.is_lent:
            foreign = (
                self.pool.num_blocks
            )  # ids of another pool's blocks begin here; which ones does not matter
            arrival.lent = [foreign + i for i in range(-(-arrival.num_tokens // self.block_size))]
        self.scheduler.add_arrival(arrival)
        self.wake()

    def stay(self, request: SimRequest) -> None:
        request.stage = "decode"
        request.moved_s = self.clock.now_s

    def lease(self, request: SimRequest) -> None:
        sequence = self._here.pop(request.id)[1]
        blocks = self.scheduler.detach(sequence)
        self.leases.grant(request.id, request.id, blocks, self.clock.now_s)
        self.leased[request] = None
        request.is_lent = self.lends and self.leases.num_blocks <= LEND_SHARE * self.pool.num_blocks

    def let_go(self, request: SimRequest) -> None:
        if request in self.leased:
            del self.leased[request]
            self.pool.release(self.leases.release(request.id))
            self.wake()

    def drop(self, request: SimRequest) -> None:
        """Its prompt was computed for nothing."""
        self.scheduler.finish(self._here.pop(request.id)[1])

    def arrived(self, request: SimRequest) -> None:
        del self.moving[request]
        request.stage = "decode"
        request.moved_s = self.clock.now_s
        self.scheduler.arrived(request.id)
        self.wake()

    def not_arrived(self, request: SimRequest) -> None:
        request.stage = "prefill"
        if request in self.moving:
            del self.moving[request]
            self.scheduler.not_arrived(request.id)
        else:
            for arrival in self.scheduler.remove(request.id):
                self.scheduler.add(arrival.sequences[0])
        self.wake()

    def cancel(self, request: SimRequest) -> None:
        if self._here.pop(request.id, None) is not None:
            self.scheduler.remove(request.id)
            if request in self.moving:
                del self.moving[request]
                self.scheduler.not_arrived(request.id)
            self.scheduler.returned.clear()  # the cluster ends its lease
            self._chunks = [c for c in self._chunks if c.sequence.request.id != request.id]
        self.wake()

    def die(self) -> None:
        self.alive = False
        self._ticket = -1

    def change_pace(self, slow: float) -> None:
        self.slow = slow

    def events(self) -> tuple[list[bytes], list[bytes]]:
        return self.pool.drain_events()

    def check(self) -> None:
        self.pool.check_integrity(self.scheduler.held_blocks() + self.leases.held_blocks())

    def _enter(self, request: SimRequest) -> Sequence:
        tokens = _tokens(request, self.block_size)
        made = Request(id=request.id, prompt_token_ids=tokens, sampling=GREEDY, arrival_s=request.arrival_s)
        sequence = Sequence(made, 0, tokens + [-request.index - 1] * request.given, b"")
        self._here[request.id] = (request, sequence)
        return sequence

    # -- steps --------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        if self.alive and not self._is_busy and not self._is_ending:
            self._plan()

    def _plan(self) -> None:
        now_s = self.clock.now_s
        if now_s < self.paused_until_s:
            self._is_busy, self._chunks = True, []
            self._ticket = self.clock.at(self.paused_until_s, self._end, None)
            return
        plan = self.scheduler.plan(now_s)
        for arrival in plan.fetches:
            request = self._here[arrival.lease_id][0]
            request.stage, request.accepted_s = "moving", now_s
            request.hit = arrival.num_skip * self.block_size
            self.moving[request] = None
            self.boss.fetch(request, self, 0.0)
        for sequence in plan.preempted:
            self._here[sequence.request.id][0].stage = "prefill"
        self._give_back()
        if not plan.chunks:
            return
        tokens = square = batch = context = 0
        for chunk in plan.chunks:
            request = self._here[chunk.sequence.request.id][0]
            if request.stage == "bridge":  # read in place
                request.stage = "decode"
                request.accepted_s = request.moved_s = now_s
            if request.stage == "decode" and chunk.count == 1:
                batch += 1
                context += chunk.start + 1
            else:
                if math.isnan(request.prefill_at_s):
                    request.prefill_at_s = now_s
                tokens += chunk.count
                square += chunk.count * (chunk.count + 2 * chunk.start)
        self.num_prefill_tokens += tokens
        self._chunks, self._is_busy, self._start_s = plan.chunks, True, now_s
        duration = self.times.mixed_s(tokens, square, batch, context) * self.slow
        draws = self.prompt_draws if tokens else self.draws
        if draws is not None:
            duration *= draws.pace(now_s, duration)
        self._ticket = self.clock.at(now_s + duration, self._end, None)

    def _give_back(self) -> None:
        """Leases under which nothing is read here any more; what was declined is computed here."""
        returned, self.scheduler.returned = self.scheduler.returned, []
        for request_id in returned:
            if request_id in self._here:
                request = self._here[request_id][0]
                if request.stage == "bridge":
                    request.stage = "prefill"
                self.boss.returned(request)

    def _end(self, _: None) -> None:
        if self.clock.ticket != self._ticket:
            return
        self._is_busy, self._is_ending = False, True
        self.steps += 1
        self.busy_s += self.clock.now_s - self._start_s if self._chunks else 0.0
        chunks, self._chunks = self._chunks, []
        for chunk in chunks:
            self._advance(chunk)
        self._is_ending = False
        if self.alive:
            self._plan()

    def _advance(self, chunk: Chunk) -> None:
        sequence, samples = chunk.sequence, chunk.samples
        request = self._here[sequence.request.id][0]
        self.scheduler.computed(sequence, chunk.start + chunk.count)
        if not samples:
            return
        sequence.token_ids.append(-request.index - 1)
        request.given += 1
        if math.isnan(request.first_s):
            request.first_s = self.clock.now_s
        if request.given >= request.output_len:
            self.scheduler.finish(sequence)
            del self._here[request.id]
            self.scheduler.returned.clear()
            request.end_s = self.clock.now_s
            self.boss.finished(request, self)
        elif request.stage != "decode":
            self.boss.first_or_next(request, self)


def _tokens(request: SimRequest, block_size: int) -> list[int]:
    """Made-up prompt: blocks of a shared prefix spell their name, the rest is the request's own."""
    tokens: list[int] = []
    for name in request.names:
        tokens += [int.from_bytes(name, "big") % (1 << 31)] * block_size
    return tokens + [request.index] * (request.prompt_len - len(tokens))
