"""What a worker computes next: continuous batching over a paged pool, prefill in chunks beside decode.

Each step has a token budget. Running sequences that decode come first, so a long prompt never stalls a stream; the rest of
the budget goes to prompts in order of rank. Where blocks run out the lowest-ranked running sequence gives its own
back and is computed again later. KV from another worker is accepted only when there is room for it, and waits there until
then (DistServe, OSDI'24, section 4.3; the acceptance rule is that of its decoding scheduler).

Blocks of another worker's pool may be lent: ids from `pool.num_blocks` on, which sequences read where they lie. Nothing is
counted for them but the sequences under their lease; they are copied before a write, and never enter the prefix index.
"""

from bisect import insort
from collections.abc import Iterator

from mortice.kv.pool import BlockPool
from mortice.sched.prefill_order import PrefillOrder, WaitingPrompt
from mortice.sched.sequence import Arrival, Chunk, Sequence, StepPlan

ACCEPT_SHARE = 0.05  # of the pool's blocks, for sequences accepted and not yet running
LEND_SHARE = (
    0.5  # of the pool's blocks, kept for readers until their sequences end; the rest is for new prompts
)
REMEMBERED = 64  # prompts, about, whose mean length parts the short from the long


def _rank(item: Sequence | Arrival) -> tuple[int, float, str, int]:
    return item.rank


class BatchScheduler:
    """Owns the block tables of a worker's sequences. Pure: no clock, no tensors.

    Prompts are taken by rank, as many as fit. Under an `order` by length they come batch by batch, the next when no prompt
    is being computed; the order knows no ranks but priorities.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        token_budget: int,
        max_num_seqs: int,
        order: PrefillOrder | None = None,
    ) -> None:
        self.pool = pool
        self.order = order
        self.block_size = block_size
        self.token_budget = token_budget
        self.max_num_seqs = max_num_seqs
        self.waiting: list[Sequence] = []  # by rank
        self.running: list[Sequence] = []  # by rank
        self.arriving: list[Arrival] = []  # by rank; their KV waits on its owner
        self.fetching: dict[str, Arrival] = {}  # by lease
        self.returned: list[
            str
        ] = []  # leases under which nothing is read any more; the engine takes them from here
        self._num_readers: dict[str, int] = {}  # sequences by the lease under which they read
        self._mean_prompt = 0.0  # tokens; kept under an order only
        self._num_prompts = 0
        self.num_preemptions = 0
        self.num_prefix_queried = 0  # tokens
        self.num_prefix_hit = 0
        self.num_external_queried = 0  # tokens asked of another worker
        self.num_external_hit = 0

    # -- what comes in ------------------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_rank)

    def add_arrival(self, arrival: Arrival) -> None:
        insort(self.arriving, arrival, key=_rank)

    def arrived(self, lease_id: str) -> Arrival | None:
        """The fetch is complete: its sequences run, sharing the blocks (none may be left, if the request was removed)."""
        arrival = self.fetching.pop(lease_id, None)
        if arrival is None:
            return None
        self.num_external_hit += self._tokens_fetched(arrival)
        for i, sequence in enumerate(arrival.sequences):
            if i:
                self.pool.acquire(arrival.blocks)
            sequence.blocks = list(arrival.blocks)
            sequence.num_computed = arrival.num_tokens
            sequence.num_committed = arrival.num_skip
            insort(self.running, sequence, key=_rank)
            self._commit_full_blocks(sequence)
        if not arrival.sequences:
            self.pool.release(arrival.blocks)
        return arrival

    def not_arrived(self, lease_id: str) -> Arrival | None:
        """The fetch failed: its blocks are dirty and go back, its sequences compute their prompt here."""
        arrival = self.fetching.pop(lease_id, None)
        if arrival is None:
            return None
        self.pool.release(arrival.blocks)
        for sequence in arrival.sequences:
            self.add(sequence)
        return arrival

    def remove(self, request_id: str) -> list[Arrival]:
        """Forget a request wherever it stands. Blocks under a running fetch are given back when it ends: until
        then the transfer may still write to them. Answers the arrivals whose lease the caller should end."""
        for sequence in [s for s in self.running if s.request.id == request_id]:
            self.finish(sequence)
        self.waiting = [s for s in self.waiting if s.request.id != request_id]
        gone = [a for a in self.arriving if a.sequences[0].request.id == request_id]
        self.arriving = [a for a in self.arriving if a not in gone]
        for arrival in self.fetching.values():
            if arrival.sequences and arrival.sequences[0].request.id == request_id:
                arrival.sequences.clear()
        return gone

    def end(self, sequence: Sequence) -> Arrival | None:
        """Forget one sequence wherever it stands, its siblings staying. Answers an arrival that nobody waits for any more
        and whose lease the caller should end."""
        if sequence in self.running:
            self.finish(sequence)
        self.waiting = [s for s in self.waiting if s is not sequence]
        for arrival in (*self.arriving, *self.fetching.values()):
            if sequence in arrival.sequences:
                arrival.sequences.remove(sequence)
                if not arrival.sequences and arrival in self.arriving:
                    self.arriving.remove(arrival)
                    return arrival
        return None

    # -- the step -----------------------------------------------------------------------------------------------

    def plan(self, now_s: float = 0.0) -> StepPlan:
        """The next step. `now_s` counts under an `order` by length, which lets nobody wait too long."""
        budget = self.token_budget
        chunks: list[Chunk] = []
        copies: list[tuple[int, int]] = []
        preempted: list[Sequence] = []
        fetches = self._accept_arrivals()
        for sequence in sorted(
            self.running, key=lambda s: s.is_prefill
        ):  # stable: decode first, each by rank
            if budget <= 0:
                break
            if sequence in preempted:
                continue
            known = len(sequence.token_ids) + len(sequence.drafts)
            count = min(known - sequence.num_computed, budget)
            if not self._make_room(sequence, count, copies, preempted):
                continue
            chunks.append(self._chunk(sequence, count))
            budget -= count
        if not preempted and budget > 0:
            for sequence in self._admit(self.waiting if self.order is None else self._next_batch(now_s)):
                count = min(len(sequence.token_ids) - sequence.num_computed, budget)
                chunks.append(self._chunk(sequence, count))
                budget -= count
                if budget <= 0:
                    break
        chunks = [chunk for chunk in chunks if chunk.sequence not in preempted]
        return StepPlan(chunks, copies, fetches, preempted)

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """The step put the KV of tokens up to `num_tokens` in place, and they are accepted."""
        sequence.num_computed = num_tokens
        sequence.drafts = []
        self._commit_full_blocks(sequence)

    def fork(self, leader: Sequence) -> list[Sequence]:
        """Siblings of a sequence whose prompt is done: they share its blocks until they write."""
        siblings = []
        for index in range(leader.index + 1, leader.index + 1 + leader.num_forks):
            sibling = Sequence(leader.request, index, list(leader.token_ids), leader.chain)
            self.pool.acquire(leader.blocks)
            sibling.blocks = list(leader.blocks)
            sibling.names = list(leader.names)
            sibling.num_computed = leader.num_computed
            sibling.num_committed = leader.num_committed
            sibling.num_cached = leader.num_cached
            sibling.prefill_only = leader.prefill_only
            insort(self.running, sibling, key=_rank)
            siblings.append(sibling)
        leader.num_forks = 0
        return siblings

    def finish(self, sequence: Sequence) -> None:
        """The sequence is over; its blocks go back, named ones stay findable."""
        self.running.remove(sequence)
        self.pool.release(self._own(sequence.blocks))
        sequence.blocks = []
        if sequence.lease_id:
            self._num_readers[sequence.lease_id] -= 1
            if not self._num_readers[sequence.lease_id]:
                del self._num_readers[sequence.lease_id]
                self.returned.append(sequence.lease_id)
            sequence.lease_id = ""

    def preempt(self, sequence: Sequence) -> None:
        """A running sequence gives its blocks back and waits to be computed anew."""
        self.finish(sequence)
        sequence.num_computed = sequence.num_committed = 0
        sequence.drafts = []
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.add(sequence)

    def detach(self, sequence: Sequence) -> list[int]:
        """The sequence is over here but its blocks are not: they now belong to the caller, who will release them."""
        self.running.remove(sequence)
        blocks, sequence.blocks = sequence.blocks, []
        return blocks

    def preempt_all(self) -> list[Sequence]:
        """Everything that runs goes back to waiting, to be computed anew (new weights, or sleep)."""
        preempted = list(self.running)
        for sequence in preempted:
            self.preempt(sequence)
        return preempted

    # -- what can be asked --------------------------------------------------------------------------------------

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens still to be computed for sequences that wait or prefill."""
        waiting = sum(len(s.token_ids) for s in self.waiting)
        return waiting + sum(len(s.token_ids) - s.num_computed for s in self.running if s.is_prefill)

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self.arriving)

    def sequences(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting
        for arrival in (*self.arriving, *self.fetching.values()):
            yield from arrival.sequences

    def held_blocks(self) -> list[int]:
        """One entry a reference that this scheduler holds on the pool."""
        held = [block for s in self.running for block in self._own(s.blocks)]
        return held + [block for arrival in self.fetching.values() for block in arrival.blocks]

    # -- inside -------------------------------------------------------------------------------------------------

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        known = len(sequence.token_ids)
        num_drafts = max(0, sequence.num_computed + count - known)
        return Chunk(sequence, sequence.num_computed, count, num_drafts)

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _make_room(
        self, sequence: Sequence, count: int, copies: list[tuple[int, int]], preempted: list[Sequence]
    ) -> bool:
        """Blocks for `count` more tokens, preempting from the lowest rank up; False if that was this very sequence."""
        first = sequence.num_computed // self.block_size
        shared = [
            i for i in range(first, len(sequence.blocks)) if self._is_shared(sequence.blocks[i])
        ]  # written blocks that a sibling, or their owner, still reads
        missing = self._blocks_for(sequence.num_computed + count) - len(sequence.blocks)
        need = len(shared) + max(0, missing)
        while (new := self.pool.allocate(need)) is None:
            victim = self.running[-1]
            self.preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        for i in shared:
            old, fresh = sequence.blocks[i], new.pop()
            copies.append((old, fresh))
            self.pool.release(self._own([old]))
            sequence.blocks[i] = fresh
        sequence.blocks += new
        return True

    def _is_shared(self, block: int) -> bool:
        return block >= self.pool.num_blocks or self.pool.refs(block) > 1

    def _own(self, blocks: list[int]) -> list[int]:
        """Those of this worker's pool."""
        return [block for block in blocks if block < self.pool.num_blocks]

    def _num_slots_used(self) -> int:
        running = sum(1 + s.num_forks for s in self.running)
        return running + sum(len(a.sequences) for a in self.fetching.values())

    def _next_batch(self, now_s: float) -> list[Sequence]:
        """What the order picks among those of the highest priority that wait; nothing while a prompt is being computed."""
        assert self.order is not None
        for sequence in self.waiting:
            if sequence.since_s is None:
                sequence.since_s = now_s
                self._num_prompts = min(self._num_prompts + 1, REMEMBERED)
                self._mean_prompt += (sequence.prompt_len - self._mean_prompt) / self._num_prompts
        if not self.waiting or any(s.is_prefill for s in self.running):
            return []
        equals = [s for s in self.waiting if s.request.priority == self.waiting[0].request.priority]
        begun = [s for s in equals if s.num_output]  # preempted: somebody reads their stream already
        if begun:
            return begun
        prompts = [WaitingPrompt(len(s.token_ids), s.since_s or 0.0) for s in equals]
        return [equals[i] for i in self.order.pick(prompts, now_s, self._mean_prompt)]

    def _admit(self, candidates: list[Sequence]) -> Iterator[Sequence]:
        """Those for which there is a slot and room for all they know, head first and without look-ahead."""
        for sequence in list(candidates):
            if self._num_slots_used() + 1 + sequence.num_forks > self.max_num_seqs and self.running:
                return
            hit = self._cached_prefix(sequence)
            need = self._blocks_for(len(sequence.token_ids)) - len(hit)
            # One spare block per running sequence, or the newcomer is preempted as soon as the others grow.
            spare = len(self.running) if self.running else 0
            if need + spare > self.pool.num_free - self.pool.num_acquirable_free(hit):
                return
            self.pool.acquire(hit)
            new = self.pool.allocate(need)
            assert new is not None
            sequence.blocks = hit + new
            sequence.num_computed = len(hit) * self.block_size
            sequence.num_committed = len(hit)
            if sequence.num_preemptions == 0:
                sequence.num_cached = sequence.num_computed
                self.num_prefix_queried += len(sequence.token_ids)
                self.num_prefix_hit += sequence.num_cached
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=_rank)
            yield sequence

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """Cached blocks of the sequence's beginning. At least one token stays to be computed, for its logits."""
        if sequence.request.sampling.prompt_logprobs is not None and sequence.num_output == 0:
            return []
        return self.pool.lookup(sequence.name_blocks(len(sequence.token_ids) - 1, self.block_size))

    def _accept_arrivals(self) -> list[Arrival]:
        accepted = []
        limit = ACCEPT_SHARE * self.pool.num_blocks
        on_their_way = sum(len(a.blocks) for a in self.fetching.values())
        while self.arriving and (on_their_way < limit or not self.fetching):
            arrival = self.arriving[0]
            sequence = arrival.sequences[0]
            if self._comes_after_the_waiting(arrival):
                break
            if self._num_slots_used() + len(arrival.sequences) > self.max_num_seqs and self._num_slots_used():
                break
            hit = self.pool.lookup(sequence.name_blocks(arrival.num_tokens, self.block_size))
            need = self._blocks_for(arrival.num_tokens) - len(hit)
            if (
                arrival.lent is not None
            ):  # nothing is copied but the last block, before each sequence writes to it
                need = len(arrival.sequences)
            if need + len(self.running) > self.pool.num_free - self.pool.num_acquirable_free(hit):
                if self._is_stuck():
                    self._decline(arrival)
                break
            if arrival.lent is not None:
                self.arriving.pop(0)
                self._read_in_place(arrival, hit)
                continue
            self.pool.acquire(hit)
            new = self.pool.allocate(need)
            assert new is not None
            arrival.blocks, arrival.num_skip = hit + new, len(hit)
            self.fetching[arrival.lease_id] = arrival
            self.num_external_queried += self._tokens_fetched(arrival)
            on_their_way += len(arrival.blocks)
            accepted.append(arrival)
            self.arriving.pop(0)
        return accepted

    def _is_stuck(self) -> bool:
        """Nothing here is going to make room: what holds it are leases of this worker, which wore another role before."""
        return not (self.running or self.fetching or (self.waiting and self._fits(self.waiting[0])))

    def _decline(self, arrival: Arrival) -> None:
        """Give its lease back and compute it here when there is room. Two workers whose roles changed may each wait for room
        that the other's KV holds; one that lets go frees the other."""
        self.arriving.remove(arrival)
        self.returned.append(arrival.lease_id)
        for sequence in arrival.sequences:
            self.add(sequence)

    def _read_in_place(self, arrival: Arrival, hit: list[int]) -> None:
        """Start the sequences of an arrival on blocks lent to this worker, after those of its own cache."""
        assert arrival.lent is not None
        arrival.num_skip = len(hit)
        self.num_external_queried += self._tokens_fetched(arrival)
        self.num_external_hit += self._tokens_fetched(arrival)
        self._num_readers[arrival.lease_id] = len(arrival.sequences)
        for sequence in arrival.sequences:
            self.pool.acquire(hit)
            sequence.blocks = hit + arrival.lent[len(hit) :]
            sequence.lease_id = arrival.lease_id
            sequence.num_computed = arrival.num_tokens
            insort(self.running, sequence, key=_rank)

    def _tokens_fetched(self, arrival: Arrival) -> int:
        """Tokens whose KV this worker asks the owner for: those its own prefix cache lacks."""
        return max(0, arrival.num_tokens - arrival.num_skip * self.block_size)

    def _comes_after_the_waiting(self, arrival: Arrival) -> bool:
        """KV from elsewhere must not take, again and again, the room that a large request of higher rank waits for. But
        where nothing here is going to make room (leases hold it) it does not wait: the leases may wait for it."""
        if not self.waiting or arrival.rank < self.waiting[0].rank:
            return False
        return bool(self.running or self.fetching or self._fits(self.waiting[0]))

    def _fits(self, sequence: Sequence) -> bool:
        """There is room for all that it knows."""
        hit = self._cached_prefix(sequence)
        need = self._blocks_for(len(sequence.token_ids)) - len(hit)
        return need <= self.pool.num_free - self.pool.num_acquirable_free(hit)

    def _commit_full_blocks(self, sequence: Sequence) -> None:
        if sequence.lease_id:  # no chain of this worker's own leads here
            return
        names = sequence.name_blocks(sequence.num_computed, self.block_size)
        for i in range(sequence.num_committed, len(names)):
            self.pool.commit(sequence.blocks[i], names[i])
        sequence.num_committed = max(sequence.num_committed, len(names))
