"""A request on its way through the cluster."""

from collections.abc import Callable
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
    hear: Callable[[Delta | MorticeError], None]  # whoever listens; an error is the last thing it hears
    given: list[list[int]] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)
    worker_id: str | None = None  # where it runs now; None while it waits for a worker
    stage: str = "pending"  # pending | prefill | decode
    descriptor: KVDescriptor | None = None  # KV that waits under a lease, until the reader has it
    num_attempts: int = 0  # workers that died under it since it last made progress
    is_admitted: bool = False  # a worker was found for it once: it is not refused any more
    is_computed: bool = False  # its prompt is, on the worker that has it
    is_closed: bool = False  # the control plane knows that it is over
    arrived_s: float = 0.0
    first_token_s: float | None = None
    last_token_s: float = 0.0

    def __post_init__(self) -> None:
        self.given = [[] for _ in range(self.request.n)]

    @property
    def is_over(self) -> bool:
        return len(self.finished) == self.request.n

    @property
    def num_given(self) -> int:
        return sum(map(len, self.given))

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds between tokens of a sequence; None for answers of one token."""
        after_first = self.num_given / self.request.n - 1
        if self.first_token_s is None or after_first <= 0:
            return None
        return (self.last_token_s - self.first_token_s) / after_first

    @property
    def resumed(self) -> list[list[int] | None]:
        """For Submit: tokens given per sequence, None where it ended; empty if nothing was given yet."""
        if not any(self.given):
            return []
        return [None if i in self.finished else list(tokens) for i, tokens in enumerate(self.given)]

    def take(self, delta: Delta, now_s: float) -> None:
        """Pass a delta on to whoever listens, unless the sequence is over (another worker may compute it once more)."""
        if delta.index in self.finished:
            return
        if delta.token_ids:
            self.num_attempts = 0
            self.last_token_s = now_s
            if self.first_token_s is None:
                self.first_token_s = now_s
        self.given[delta.index] += delta.token_ids
        if delta.finish_reason is not None:
            self.finished.add(delta.index)
        self.hear(delta)

    def fail(self, error: MorticeError) -> None:
        self.finished = set(range(self.request.n))
        self.hear(error)
