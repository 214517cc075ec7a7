"""The batch scheduler by itself: a worker without a model, whose sequences say one token a step until they have enough."""

import itertools
import random

import pytest

from mortice.kv.pool import BlockPool
from mortice.sched.batching import BatchScheduler
from mortice.sched.prefill_order import PrefillOrder
from mortice.sched.sequence import Arrival, Sequence, StepPlan
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams

BLOCK = 4


class Worker:
    """Carries plans out: computes what they say, lets fetches arrive after `fetch_steps` steps."""

    def __init__(
        self,
        num_blocks: int,
        *,
        token_budget: int = 32,
        max_num_seqs: int = 16,
        fetch_steps: int = 1,
        order: PrefillOrder | None = None,
    ):
        self.pool = BlockPool(num_blocks)
        self.scheduler = BatchScheduler(
            self.pool,
            block_size=BLOCK,
            token_budget=token_budget,
            max_num_seqs=max_num_seqs,
            order=order,
        )
        self.fetch_steps = fetch_steps
        self.lent: list[int] = []  # blocks under leases
        self.num_steps = 0
        self.finished: dict[str, int] = {}  # request -> step at which its last sequence ended
        self._left: dict[str, int] = {}
        self._arriving: list[tuple[int, str]] = []
        self._serial = itertools.count()

    def submit(
        self, length: int, count: int, *, n: int = 1, arrives: bool = False, priority: int = 0
    ) -> Request:
        serial = next(self._serial)
        request = Request(
            id=f"r{serial}",
            prompt_token_ids=[1000 * serial + i for i in range(length)],
            sampling=SamplingParams(max_tokens=count),
            n=n,
            arrival_s=serial,
            priority=priority,
        )
        self._left[request.id] = n
        prompt, chain = request.prompt_token_ids, b"root"
        if arrives:
            sequences = [Sequence(request, i, [*prompt, 7], chain) for i in range(n)]
            self.scheduler.add_arrival(Arrival(sequences, length, f"lease-{serial}"))
        else:
            self.scheduler.add(Sequence(request, 0, list(prompt), chain, num_forks=n - 1))
        return request

    def step(self) -> StepPlan:
        self.num_steps += 1
        for due, lease_id in [a for a in self._arriving if a[0] <= self.num_steps]:
            self._arriving.remove((due, lease_id))
            self.scheduler.arrived(lease_id)
        plan = self.scheduler.plan(float(self.num_steps))
        self._arriving += [(self.num_steps + self.fetch_steps, a.lease_id) for a in plan.fetches]
        assert plan.num_tokens <= self.scheduler.token_budget
        for chunk in plan.chunks:
            sequence = chunk.sequence
            assert len(sequence.blocks) * BLOCK >= chunk.start + chunk.count
            self.scheduler.computed(sequence, chunk.start + chunk.count)
            if chunk.samples:
                for member in [sequence, *self.scheduler.fork(sequence)]:
                    member.token_ids.append(7)
                    if member.num_output >= member.request.sampling.max_tokens:
                        self._end(member)
        self.check()
        return plan

    def run(self, limit: int = 2000) -> None:
        for _ in range(limit):
            if not self._left:
                return
            self.step()
        raise AssertionError(f"{sorted(self._left)} never end")

    def check(self) -> None:
        self.pool.check_integrity(self.scheduler.held_blocks() + self.lent)

    def _end(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        self._left[sequence.request.id] -= 1
        if not self._left[sequence.request.id]:
            del self._left[sequence.request.id]
            self.finished[sequence.request.id] = self.num_steps


def test_streams_go_on_beside_a_long_prompt() -> None:
    worker = Worker(64, token_budget=8)
    stream = worker.submit(4, 30)
    worker.step()
    long = worker.submit(60, 1)
    while long.id not in worker.finished:
        plan = worker.step()
        counts = {chunk.sequence.request.id: chunk.count for chunk in plan.chunks}
        assert counts[stream.id] == 1, "every step gives the stream its token"
        assert counts.get(long.id, 0) <= 7, "the prompt gets the rest"
    assert worker.num_steps == 1 + -(-60 // 7)


def test_first_come_first_served_and_priority_before_that() -> None:
    worker = Worker(64, max_num_seqs=1)
    first, second, urgent = worker.submit(8, 2), worker.submit(8, 2), worker.submit(8, 2, priority=1)
    worker.run()
    order = sorted(worker.finished, key=worker.finished.__getitem__)
    assert order == [urgent.id, first.id, second.id]


def by_length(max_wait_s: float = 1000.0) -> PrefillOrder:
    return PrefillOrder(order="length", token_budget=32, saturating_tokens=32, max_wait_s=max_wait_s)


def test_by_length_short_prompts_go_together_and_before_the_long_which_go_alone() -> None:
    worker = Worker(64, order=by_length())
    prompts = [worker.submit(length, 1) for length in (60, 12, 50, 8, 9)]
    batches = []
    while len(worker.finished) < 5:
        plan = worker.step()
        batches.append([prompts.index(chunk.sequence.request) for chunk in plan.chunks])
    assert batches == [[3, 4, 1], [0], [0], [2], [2]]


def test_by_length_priority_still_comes_first() -> None:
    worker = Worker(64, order=by_length())
    worker.submit(8, 1)
    urgent = worker.submit(60, 1, priority=1)
    assert [chunk.sequence.request for chunk in worker.step().chunks] == [urgent]


def test_by_length_a_long_prompt_is_not_starved() -> None:
    worker = Worker(64, order=by_length(max_wait_s=10.0))
    long = worker.submit(60, 1)
    for _ in range(20):
        for _ in range(4):
            worker.submit(8, 1)
        worker.step()
    assert worker.finished[long.id] <= 14


def test_by_length_a_preempted_stream_goes_on_before_new_prompts() -> None:
    worker = Worker(64, order=by_length())
    stream = worker.submit(40, 9)
    worker.step()
    worker.step()
    worker.scheduler.preempt_all()
    worker.submit(8, 1)
    assert [chunk.sequence.request for chunk in worker.step().chunks] == [stream]


@pytest.mark.parametrize("arrives", [False, True])
def test_a_large_request_is_not_starved_by_small_ones(arrives: bool) -> None:
    """Whether the small ones' prompts are computed here or come from another worker."""
    worker = Worker(16)
    for _ in range(3):
        worker.submit(8, 4, arrives=arrives)
    worker.step()
    large = worker.submit(48, 2)
    for _ in range(60):
        worker.submit(8, 4, arrives=arrives)
        worker.step()
    assert large.id in worker.finished
    worker.run()


def test_kv_that_has_come_runs_although_the_head_of_the_queue_does_not_fit() -> None:
    worker = Worker(16, fetch_steps=3)
    early = worker.submit(16, 6, arrives=True)
    worker.step()
    worker.submit(60, 2)  # has to wait until nearly everything is free
    ran = []
    for _ in range(12):
        ran += [chunk.sequence.request.id for chunk in worker.step().chunks]
    assert early.id in worker.finished
    assert ran.index(early.id) == 0


def test_an_arrival_that_does_not_fit_yet_waits_on_its_owner_and_takes_nothing() -> None:
    worker = Worker(8)
    worker.submit(12, 8)
    worker.step()
    late = worker.submit(24, 2, arrives=True)
    assert not worker.step().fetches
    assert len(worker.scheduler.arriving) == 1
    worker.run()
    assert late.id in worker.finished


def test_waiting_work_and_waiting_kv_never_wait_for_each_other() -> None:
    """Blocks lent to other workers keep the head of the queue out: KV for later requests is accepted all the same."""
    worker = Worker(8)
    worker.lent = worker.pool.allocate(4) or []
    worker.submit(24, 2)
    arrival = worker.submit(8, 2, arrives=True)
    for _ in range(10):
        worker.step()
    assert arrival.id in worker.finished
    worker.pool.release(worker.lent)
    worker.lent = []
    worker.run()


def test_two_workers_whose_leases_keep_each_other_out_let_go() -> None:
    """After their roles changed each may hold KV that the other waits to read, and no room for what it is to read."""
    worker = Worker(8)
    worker.lent = worker.pool.allocate(7) or []
    arrival = worker.submit(8, 2, arrives=True)
    worker.step()
    assert worker.scheduler.returned == ["lease-0"]  # its owner can go on, and end the leases here
    assert not worker.scheduler.arriving
    assert len(worker.scheduler.waiting) == 1
    worker.pool.release(worker.lent)
    worker.lent = []
    worker.run()
    assert arrival.id in worker.finished


@pytest.mark.parametrize("num_blocks", range(1, 9))
def test_a_pool_of_few_blocks_makes_progress_whatever_is_asked_of_it(num_blocks: int) -> None:
    """No livelock: however often sequences take blocks from each other, all end, in a bounded number of steps."""
    draw = random.Random(num_blocks)
    worker = Worker(num_blocks, token_budget=8)
    room = num_blocks * BLOCK
    num_tokens = 0
    for serial in range(24):
        length = draw.randint(1, room - 1)
        count = draw.randint(1, room - length)
        n = draw.choice([1, 1, 2, 3])
        num_tokens += (length + count) * n
        worker.submit(length, count, n=n, arrives=serial % 3 == 0, priority=draw.randint(0, 1))
    worker.run(limit=6 * num_tokens)
    assert len(worker.finished) == 24
    assert worker.pool.num_free == num_blocks


def test_the_first_in_rank_is_never_the_one_that_is_preempted() -> None:
    worker = Worker(6, token_budget=64)
    requests = [worker.submit(5, 16) for _ in range(4)]
    while requests[0].id not in worker.finished:
        assert all(s.request.id != requests[0].id for s in worker.step().preempted)
    assert worker.scheduler.num_preemptions > 0
    worker.run()


def test_siblings_share_the_prompt_and_copy_only_the_block_they_write() -> None:
    worker = Worker(32)
    worker.submit(10, 4, n=3)
    worker.step()
    assert worker.pool.num_blocks - worker.pool.num_free == 3, "one prompt's worth"
    copies = worker.step().copies
    assert len(copies) == 2, "the last of the three keeps the original"
    assert len({target for _, target in copies}) == 2
    worker.run()


def test_removal_leaves_a_running_fetch_its_blocks_until_it_ends() -> None:
    worker = Worker(8, fetch_steps=100)
    request = worker.submit(8, 4, arrives=True)
    worker.step()
    assert worker.scheduler.remove(request.id) == []
    assert worker.pool.num_free == 6, "the transfer may still write there"
    worker.scheduler.arrived("lease-0")
    assert worker.pool.num_free == 8


def test_what_arrived_is_found_by_the_next_and_what_failed_is_not() -> None:
    for ends_well in (True, False):
        worker = Worker(16, fetch_steps=100)
        worker.submit(9, 1, arrives=True)
        worker.step()
        if ends_well:
            worker.scheduler.arrived("lease-0")
        else:
            worker.scheduler.not_arrived("lease-0")
        names = Sequence(
            Request(id="x", prompt_token_ids=list(range(9)), sampling=SamplingParams()), 0, [], b""
        )
        names.token_ids, names.chain = list(range(9)), b"root"
        found = worker.pool.lookup(names.name_blocks(9, BLOCK))
        assert len(found) == (2 if ends_well else 0)
