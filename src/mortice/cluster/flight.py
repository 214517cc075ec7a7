"""A request on its way through the cluster."""

import asyncio
import time
from dataclasses import dataclass, field

from mortice.specs.errors import MorticeError
from mortice.specs.kv import KVDescriptor
from mortice.specs.request import Delta, Request


@dataclass(slots=True, eq=False)
class Flight:
    """What is known of a request between the edge and the workers.

    `given` holds every token that went out, so that another worker can go on where a dead one stopped.
    """

    request: Request
    names: list[bytes]  # of the prompt's blocks
    given: list[list[int]] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)
    worker_id: str | None = None  # where it runs now; None while it waits for a worker
    stage: str = "pending"  # pending | prefill | decode
    descriptor: KVDescriptor | None = None  # KV that waits under a lease, until the reader has it
    prefill_end_s: float = 0.0
    num_attempts: int = 0
    queue: "asyncio.Queue[Delta | MorticeError]" = field(default_factory=asyncio.Queue)
    created_s: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.given = [[] for _ in range(self.request.n)]

    @property
    def is_over(self) -> bool:
        return len(self.finished) == self.request.n

    @property
    def resumed(self) -> list[list[int] | None]:
        """For Submit: tokens given per sequence, None where it ended; empty if nothing was given yet."""
        if not any(self.given):
            return []
        return [None if i in self.finished else tokens for i, tokens in enumerate(self.given)]

    def take(self, delta: Delta) -> None:
        """Pass a delta on to whoever listens."""
        self.given[delta.index] += delta.token_ids
        if delta.finish_reason is not None:
            self.finished.add(delta.index)
        self.queue.put_nowait(delta)

    def fail(self, error: MorticeError) -> None:
        self.finished = set(range(self.request.n))
        self.queue.put_nowait(error)
