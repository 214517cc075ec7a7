"""Both ends of the hand-over of KV, seen from one worker.

As prefill worker it grants leases over finished prompts and keeps the blocks until the reader says it has them, the
request dies, or nobody renews the lease. As decode worker it lets KV wait on its owner until the scheduler has room,
then reads it where it lies, if both map one memory and the owner can spare the blocks for that long; else fetches it on
the transport's threads. A fetch that fails is computed here instead; nothing is ever used that was not verified.

    owner:   grant -> (renew)* -> release | expire
    reader:  offered -> fetching -> arrived | not arrived, and in either case the lease is released
             offered -> read in place -> the lease is released when the last sequence under it ends
"""

import logging
import queue
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mortice.engine.mirror import HostMirror
from mortice.kv.leases import LeaseTable
from mortice.kv.pool import BlockPool
from mortice.sched.batching import LEND_SHARE
from mortice.sched.sequence import Arrival
from mortice.specs.kv import KVDescriptor
from mortice.specs.messages import Pushed, PushTarget
from mortice.transport.base import KVTransport, Pool, TransferResult
from mortice.transport.descriptor import block_ids, check_landed, describe, describe_target
from mortice.transport.errors import Corrupt, TransferError
from mortice.transport.space import AddressSpace

log = logging.getLogger(__name__)


@dataclass(slots=True)
class HandoffCounters:
    bytes_received: int = 0
    receive_s: float = 0.0
    num_received: int = 0
    num_in_place: int = 0  # read where they lay, nothing moved
    num_failed: int = 0
    num_corrupt: int = 0  # blocks
    num_expired: int = 0


@dataclass(frozen=True, slots=True)
class Loan:
    """Blocks of a peer that sequences here read where they lie."""

    pool_id: str
    blocks: np.ndarray  # int64 [n], ids in the peer's pool
    expected: np.ndarray  # uint64 [n], their generations when they were lent
    generations: np.ndarray  # uint64, the peer's counters, live

    def is_intact(self) -> bool:
        """Whether every block still holds what was lent. True after a read proves the read: loads come in order on
        machines where blocks are lent at all."""
        return bool((self.generations[self.blocks] == self.expected).all())


class Handoff:
    """Single-threaded but for `done` callbacks of the transport, which only put results on a queue and wake the loop."""

    def __init__(
        self,
        *,
        worker_id: str,
        pool: BlockPool,
        memory: Pool,
        transport: KVTransport,
        leases: LeaseTable,
        push: bool,
        mirror: HostMirror | None,
        space: AddressSpace | None,
        wake: Callable[[], None],
    ) -> None:
        self._worker_id = worker_id
        self._pool = pool
        self._memory = memory
        self._transport = transport
        self._push = push
        self._mirror = mirror  # None: the pool's own memory is the host's
        self._space = space  # None: blocks are always copied
        self._wake = wake
        self.leases = leases
        self.counters = HandoffCounters()
        self._num_granted = 0
        self._offers: dict[str, KVDescriptor] = {}  # what this worker waits for or fetches, by lease
        self._results: queue.SimpleQueue[TransferResult] = queue.SimpleQueue()
        self._pushes: dict[str, str] = {}  # push under way: own lease -> the reader's lease
        self._loans: dict[str, Loan] = {}  # blocks that peers lent to this worker, by lease
        self._gone: set[str] = set()  # pools whose owner is dead and whose memory is still read here

    # -- owner --------------------------------------------------------------------------------------------------

    def grant(self, request_id: str, blocks: list[int], num_tokens: int, now_s: float) -> KVDescriptor:
        """Keep these blocks, whose references pass to the lease, for whoever holds the descriptor."""
        self._num_granted += 1
        lease_id = f"{self._worker_id}/{self._num_granted}"
        self.leases.grant(lease_id, request_id, blocks, now_s)
        if self._mirror is not None:
            self._mirror.copy_out(blocks)
        is_lendable = self.leases.num_blocks <= LEND_SHARE * self._pool.num_blocks
        return describe(self._memory, lease_id, blocks, num_tokens, is_lendable=is_lendable)

    def release(self, lease_ids: list[str]) -> None:
        for lease_id in lease_ids:
            if lease_id not in self._pushes:  # a push reads the blocks until its result is in
                self._pool.release(self.leases.release(lease_id))

    def cancel(self, request_id: str) -> None:
        """The request is gone: leases granted for it end."""
        blocks = self.leases.release_request(request_id)
        if blocks:
            self._pool.release(blocks)

    def expire(self, now_s: float) -> None:
        for lease in self.leases.expire(now_s):
            if lease.lease_id in self._pushes:
                self.leases.grant(lease.lease_id, lease.request_id, lease.blocks, now_s)
                continue
            self._pool.release(lease.blocks)
            self.counters.num_expired += 1

    def push(self, order: PushTarget) -> Pushed | None:
        """Start writing a lease's blocks into the reader's; answers at once only if the lease is gone.

        An order that comes twice is carried out once: a second write could outlast the first, after whose end the lease
        is over and the blocks on both sides serve others.
        """
        if order.lease_id in self._pushes:
            return None
        lease = self.leases.get(order.lease_id)
        if lease is None:
            return Pushed(
                lease_id=order.lease_id, target_lease_id=order.target.lease_id, error="the lease is over"
            )
        self._pushes[order.lease_id] = order.target.lease_id
        num_blocks = len(order.target.blocks)
        self._transport.write(
            lease.blocks[-num_blocks:] if num_blocks else [], order.target, 0, self._done_push(lease.lease_id)
        )
        return None

    # -- reader -------------------------------------------------------------------------------------------------

    def offer(self, descriptor: KVDescriptor) -> list[int] | None:
        """KV waits for this worker under the descriptor's lease. Answers block ids under which the model can read it
        where it lies; None if it must be fetched."""
        self._offers[descriptor.lease_id] = descriptor
        if self._space is None or not descriptor.is_lendable:
            return None
        try:
            window = self._space.open(descriptor.pool)
            blocks = block_ids([ref.block_id for ref in descriptor.blocks], window.num_blocks, "described")
        except TransferError as error:
            log.warning("KV of lease %s cannot be read in place: %s", descriptor.lease_id, error)
            return None
        expected = np.array([ref.generation for ref in descriptor.blocks], np.uint64)
        self._loans[descriptor.lease_id] = Loan(descriptor.pool.pool_id, blocks, expected, window.generations)
        self.counters.num_in_place += 1
        return [window.first + block for block in blocks.tolist()]

    def is_intact(self, lease_id: str) -> bool:
        """Whether what was just read under this lease was what had been lent."""
        return self._loans[lease_id].is_intact()

    def fetch(self, arrival: Arrival) -> PushTarget | None:
        """Start the transfer into arrival.blocks; in push mode answer with the order for the owner."""
        source = self._offers[arrival.lease_id]
        into = arrival.blocks[arrival.num_skip :]
        if not into:
            self._finish(TransferResult(arrival.lease_id, 0, 0.0))
            return None
        if self._push:
            target_id = f"{arrival.lease_id}>{self._worker_id}"
            target = describe_target(self._memory, target_id, into, arrival.num_tokens)
            return PushTarget(lease_id=arrival.lease_id, target=target)
        self._transport.read(source, arrival.num_skip, into, self._finish)
        return None

    def pushed(self, word: Pushed, blocks: list[int]) -> TransferResult:
        """The owner says it wrote `blocks`; trust it only if the checksums of its descriptor agree."""
        source = self._offers.get(word.lease_id)
        error, num_corrupt = word.error, 0
        if error is None and source is not None and blocks:
            expected = [ref.checksum for ref in source.blocks[-len(blocks) :]]
            try:
                check_landed(self._memory.blocks, np.array(blocks), expected, source.pool.checksum)
            except TransferError as mismatch:
                error = str(mismatch)
                num_corrupt = mismatch.num_blocks if isinstance(mismatch, Corrupt) else 0
        num_bytes = len(blocks) * self._memory.address.block_bytes
        return TransferResult(word.lease_id, num_bytes, 0.0, error, num_corrupt)

    def landed(self, blocks: list[int]) -> None:
        """A fetch into these blocks is complete and verified: bring them to where the model reads."""
        if self._mirror is not None and blocks:
            self._mirror.copy_in(blocks)

    def withdraw(self, lease_id: str) -> None:
        """Nothing will be read under this lease any more."""
        self._offers.pop(lease_id, None)
        loan = self._loans.pop(lease_id, None)
        if loan is not None and loan.pool_id in self._gone:
            self._unmap(loan.pool_id)

    def offered(self) -> list[str]:
        """Leases that this worker must keep alive."""
        return list(self._offers)

    # -- results of the transport -------------------------------------------------------------------------------

    def results(self) -> tuple[list[TransferResult], list[Pushed]]:
        """Transfers that ended since the last call: reads of this worker's, and pushes to report to their readers."""
        reads: list[TransferResult] = []
        pushed: list[Pushed] = []
        while not self._results.empty():
            result = self._results.get()
            target = self._pushes.pop(result.lease_id, None)
            if target is None:
                reads.append(result)
            else:
                self._pool.release(self.leases.release(result.lease_id))
                pushed.append(Pushed(lease_id=result.lease_id, target_lease_id=target, error=result.error))
        return reads, pushed

    def count(self, result: TransferResult) -> None:
        if result.error is None:
            self.counters.num_received += 1
            self.counters.bytes_received += result.num_bytes
            self.counters.receive_s += result.seconds
        else:
            self.counters.num_failed += 1
            self.counters.num_corrupt += result.num_corrupt

    def _finish(self, result: TransferResult) -> None:
        self._results.put(result)
        self._wake()

    def _done_push(self, lease_id: str) -> Callable[[TransferResult], None]:
        def done(result: TransferResult) -> None:
            self._finish(
                TransferResult(lease_id, result.num_bytes, result.seconds, result.error, result.num_corrupt)
            )

        return done

    def peer_gone(self, pool_id: str) -> list[str]:
        """Drop what is known of the pool. Answers leases on it whose push will never come; a read that is under way ends
        by itself, and only then are its blocks free of the transfer's pen. Blocks that it lent outlive it: nobody can give
        them away any more, and the memory stays for as long as it is mapped."""
        self._transport.forget(pool_id)
        if self._space is not None:
            self._gone.add(pool_id)
            self._unmap(pool_id)
        if not self._push:
            return []
        return [lease_id for lease_id, source in self._offers.items() if source.pool.pool_id == pool_id]

    def _unmap(self, pool_id: str) -> None:
        if self._space is not None and all(loan.pool_id != pool_id for loan in self._loans.values()):
            self._space.close(pool_id)
            self._gone.discard(pool_id)
