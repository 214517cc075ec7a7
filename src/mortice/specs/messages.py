"""What the cluster and its workers say to each other. Tagged msgspec structs, msgpack on the wire, nothing else."""

import msgspec

from mortice.specs.kv import KVDescriptor, KVLayout, PoolAddress
from mortice.specs.request import Delta, Request


class Submit(msgspec.Struct, tag="submit", frozen=True, kw_only=True, omit_defaults=True):
    """Run this request.

    `prefill_only`: stop after the first token, keep the blocks under a lease and answer with `Prefilled`.
    `resumed`: tokens each of the n sequences has already given out (empty list of lists: none); None for one that ended.
    `handoff`: where the prompt's KV can be had instead of computing it.
    """

    request: Request
    prefill_only: bool = False
    resumed: list[list[int] | None] = []
    handoff: KVDescriptor | None = None


class Abort(msgspec.Struct, tag="abort", frozen=True):
    """Forget these requests and free what they hold; no answer is sent. Unknown ids are ignored."""

    request_ids: list[str]


class EndSequence(msgspec.Struct, tag="end", frozen=True):
    """Nobody reads this sequence of a request any more: forget it, and let its siblings go on. No answer is sent; one that
    is unknown, or has not said its first token yet, is left alone."""

    request_id: str
    index: int


class LeaseRenew(msgspec.Struct, tag="renew", frozen=True):
    """Heartbeat of these leases: their holder still means to read."""

    lease_ids: list[str]


class LeaseRelease(msgspec.Struct, tag="release", frozen=True):
    """These leases are over: their blocks were read, or will never be."""

    lease_ids: list[str]


class PushTarget(msgspec.Struct, tag="push_target", frozen=True, kw_only=True):
    """Push mode: the decode worker has made room; write the leased blocks into these of its blocks."""

    lease_id: str
    target: KVDescriptor


class Pushed(msgspec.Struct, tag="pushed", frozen=True, kw_only=True):
    """Push mode: the blocks of this lease were written into the target's pool (or, with an error, were not)."""

    lease_id: str
    target_lease_id: str
    error: str | None = None


class PeerGone(msgspec.Struct, tag="peer_gone", frozen=True):
    """The owner of this pool is dead: drop what is mapped of it or connected to it."""

    pool_id: str


class Call(msgspec.Struct, tag="call", frozen=True, kw_only=True):
    """An administrative verb with JSON-like arguments; answered by exactly one `Reply` of the same id."""

    id: int
    verb: str
    args: dict = {}


class Hello(msgspec.Struct, tag="hello", frozen=True, kw_only=True):
    """First word of a worker: it has loaded its model and can serve."""

    worker_id: str
    pid: int
    layout: KVLayout
    pool: PoolAddress
    max_context: int
    vocab_size: int
    eos_token_ids: list[int]
    weight_version: int
    startup_s: dict[str, float]  # seconds of each stage of the start


class Deltas(msgspec.Struct, tag="deltas", frozen=True):
    """All that one step produced, one entry a sequence that moved."""

    deltas: list[Delta]


class Prefilled(msgspec.Struct, tag="prefilled", frozen=True, kw_only=True):
    """Prefill is done: first tokens (one delta a sequence) and where the prompt's KV waits.

    `descriptor` is None if every sequence ended with its first token: nothing is left to decode.
    """

    request_id: str
    first: list[Delta]
    descriptor: KVDescriptor | None


class WorkerStats(msgspec.Struct, tag="stats", frozen=True, kw_only=True):
    """A worker's state of mind, sent after a step (at most some times a second) and as its heartbeat when idle."""

    worker_id: str
    state: str  # running | paused | asleep | updating | draining
    num_running: int = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0  # prompt tokens still to be computed
    num_pulling: int = 0  # sequences whose KV is on its way
    num_leased_blocks: int = 0
    num_free_blocks: int = 0  # cached blocks that may be evicted count as free
    num_blocks: int = 0
    weight_version: int = 0
    counters: dict[str, float] = {}  # monotone totals, by the names of obs/metrics.py
    adapters: list[str] = []


class KVEvents(msgspec.Struct, tag="kv_events", frozen=True, kw_only=True):
    """Changes of a worker's prefix cache since its last event; `sequence` has no gaps within one life of a worker."""

    worker_id: str
    sequence: int
    stored: list[bytes] = []  # hashes of blocks now in the cache
    removed: list[bytes] = []


class Reply(msgspec.Struct, tag="reply", frozen=True, kw_only=True):
    id: int
    result: dict = {}
    error: str | None = None
    status: int = 500  # HTTP status that the error should become


ToWorker = Submit | Abort | EndSequence | LeaseRenew | LeaseRelease | PushTarget | Pushed | PeerGone | Call
FromWorker = (
    Hello
    | Deltas
    | Prefilled
    | WorkerStats
    | KVEvents
    | LeaseRenew
    | LeaseRelease
    | PushTarget
    | Pushed
    | Reply
)

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    return _encoder.encode(message)


def decode_to_worker(data: bytes) -> ToWorker:
    return _to_worker.decode(data)


def decode_from_worker(data: bytes) -> FromWorker:
    return _from_worker.decode(data)
