"""The workers as decisions see them: what each wears, what was given to it, what it last said of itself.

What was given is exact and at once (the router's own books); what a worker says of itself is as old as its last report.
The lightest worker of a pool is found without a scan: each pool is a heap of (load, order of joining) in which no worker is
entered heavier than it is; an entry that is too light is put right when it comes up.
"""

import math
from heapq import heapify, heappop, heappush, heapreplace
from typing import Literal
from zlib import crc32

Role = Literal["prefill", "decode", "mixed"]
ROLES: tuple[Role, ...] = ("prefill", "decode", "mixed")

SEQUENCE_TOKENS = 256.0  # one more sequence weighs like so many tokens of context, where no times are known


class Worker:
    """One live worker. `prefill_work` is in the router's unit of cost (seconds where step times are known, else tokens)."""

    __slots__ = (
        "accepts", "context_tokens", "convertible", "debt", "debt_at_s", "entered_key", "foreign", "free_blocks",
        "heap_key", "num_blocks", "num_decoding", "num_prefilling", "order", "pool", "prefill_work", "reported_at_s",
        "role", "sends_until_s", "slowdown", "worker_id",
    )  # fmt: skip

    def __init__(
        self, worker_id: str, role: Role, order: int, num_blocks: int, *, convertible: bool = False
    ) -> None:
        self.worker_id = worker_id
        self.role: Role = role
        self.order = order
        self.num_blocks = num_blocks
        self.convertible = convertible  # tag: a decode worker that may prefill in a burst
        self.accepts = True  # False while it drains
        self.num_prefilling = 0
        self.prefill_work = 0.0
        self.num_decoding = 0
        self.context_tokens = 0.0
        self.free_blocks = num_blocks
        self.reported_at_s = float("-inf")
        self.foreign = 0  # requests of other routers, by its last report
        self.slowdown = 1.0  # its measured step over the expected one
        self.debt = 0.0  # seconds of prefill that its decode batch still has to make up for
        self.debt_at_s = 0.0
        self.sends_until_s = 0.0  # prefixes to other prefill workers, one after the other
        self.pool: Pool | None = None  # where it may be chosen from
        self.heap_key = 0.0  # its load
        self.entered_key = math.inf  # its load as its pool's heap has it, never above `heap_key`

    @property
    def num_assigned(self) -> int:
        return self.num_prefilling + self.num_decoding


class Pool:
    """Workers of one role that accept requests, lightest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Worker]] = []
        self.members: dict[str, Worker] = {}

    def __len__(self) -> int:
        return len(self.members)

    def put(self, worker: Worker, key: float) -> None:
        """Enter a worker, or tell that its load changed."""
        worker.heap_key = key
        if worker.pool is not self:
            worker.pool = self
            self.members[worker.worker_id] = worker
        elif key >= worker.entered_key:
            return
        worker.entered_key = key
        heappush(self._heap, (key, worker.order, worker))
        if len(self._heap) > 64 + 8 * len(self.members):
            self._rebuild()

    def remove(self, worker: Worker) -> None:
        if worker.pool is self:
            worker.pool = None
            del self.members[worker.worker_id]

    def lightest(self) -> Worker | None:
        heap = self._heap
        while heap:
            key, order, worker = heap[0]
            if worker.pool is not self:
                heappop(heap)
            elif worker.heap_key == key:
                return worker
            elif worker.entered_key == key:
                worker.entered_key = worker.heap_key
                heapreplace(heap, (worker.heap_key, order, worker))
            else:
                heappop(heap)  # it was entered lighter since
        return None

    def _rebuild(self) -> None:
        for worker in self.members.values():
            worker.entered_key = worker.heap_key
        self._heap = [(w.heap_key, w.order, w) for w in self.members.values()]
        heapify(self._heap)


class Fleet:
    """Books of all workers. `sequence_tokens`: what one more sequence weighs beside its context, in tokens;
    `work_tokens`: what one unit of prefill work weighs in a pool that does both."""

    def __init__(
        self, *, sequence_tokens: float = SEQUENCE_TOKENS, work_tokens: float = 1.0, router: int = 0
    ) -> None:
        self.router = router  # of several: each prefers other workers among equals
        self.typical_work = 0.0  # of one prompt, for what other routers sent
        self.sequence_tokens = sequence_tokens
        self.work_tokens = work_tokens
        self.workers: dict[str, Worker] = {}
        self.pools: dict[Role, Pool] = {role: Pool() for role in ROLES}
        self._joined = 0

    def join(self, worker_id: str, role: Role, num_blocks: int, *, convertible: bool = False) -> Worker:
        """A worker is ready. Joining twice under one id is a fault of the driver."""
        if worker_id in self.workers:
            raise AssertionError(f"worker {worker_id} joined twice")
        order = crc32(b"%d/%d" % (self.router, self._joined)) if self.router else self._joined
        worker = Worker(worker_id, role, order, num_blocks, convertible=convertible)
        self._joined += 1
        self.workers[worker_id] = worker
        self.touch(worker)
        return worker

    def leave(self, worker_id: str) -> Worker | None:
        worker = self.workers.pop(worker_id, None)
        if worker is not None:
            self.pools[worker.role].remove(worker)
            worker.accepts = False  # whatever is booked off it later, it stays out
        return worker

    def wear(self, worker: Worker, role: Role) -> None:
        """The worker changed its coat: it takes new requests of the new role at once."""
        self.pools[worker.role].remove(worker)
        worker.role = role
        worker.accepts = True
        self.touch(worker)

    def drain(self, worker: Worker) -> None:
        worker.accepts = False
        self.pools[worker.role].remove(worker)

    def undrain(self, worker: Worker) -> None:
        worker.accepts = True
        self.touch(worker)

    def touch(self, worker: Worker) -> None:
        """The worker's load changed: put it where it now belongs in its pool."""
        if not worker.accepts:
            return
        if worker.role == "prefill":
            # What is left of its decoding after a flip slows its prompts, so it counts a little.
            key = worker.prefill_work + worker.foreign * self.typical_work + 1e-9 * worker.num_assigned
        else:
            key = (
                worker.context_tokens
                + self.sequence_tokens * (worker.num_decoding + worker.num_prefilling + worker.foreign)
                + self.work_tokens * worker.prefill_work
            )
        key *= worker.slowdown
        pool = self.pools[worker.role]
        if worker.heap_key != key or worker.pool is not pool:
            pool.put(worker, key)

    def report(
        self, worker: Worker, at_s: float, num_assigned: int, free_blocks: int, slowdown: float
    ) -> None:
        """What a worker said of itself. What it has beyond our own books is other routers' doing."""
        worker.reported_at_s = at_s
        worker.free_blocks = free_blocks
        worker.foreign = max(0, num_assigned - worker.num_assigned)
        worker.slowdown = slowdown
        self.touch(worker)

    def num(self, role: Role) -> int:
        """Workers of the role that accept requests."""
        return len(self.pools[role])
