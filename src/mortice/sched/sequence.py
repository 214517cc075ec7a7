"""One sequence on its way through a worker."""

from dataclasses import dataclass, field

from mortice.kv.hashing import extend_chain
from mortice.specs.request import Request


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens known, tokens whose KV stands in blocks, and the blocks.

    There is no prefill or decode phase: a step computes some of the tokens that are known and not yet computed, and a
    step that reaches the last one yields the next.
    """

    request: Request
    index: int  # which of the request's n sequences
    token_ids: list[int]  # prompt and output; the engine appends
    chain: bytes  # name of the (imaginary) block before the first; set once, so that later weights rename nothing
    num_forks: int = 0  # siblings to be made when the prompt is done
    prefill_only: bool = False
    num_computed: int = 0  # tokens whose KV is in blocks; set by the scheduler
    num_cached: int = (
        0  # prompt tokens whose KV was found or fetched, on first admission; set by the scheduler
    )
    blocks: list[int] = field(default_factory=list)  # set by the scheduler
    names: list[bytes] = field(
        default_factory=list
    )  # hashes of the full blocks of token_ids, as far as computed
    num_committed: int = 0  # blocks entered into the prefix index
    drafts: list[int] = field(default_factory=list)  # proposed next tokens, to be verified; set by the engine
    num_preemptions: int = 0
    since_s: float | None = None  # when an order by length first saw it wait; set by the scheduler
    lease_id: str = ""  # of the lent blocks among `blocks`, "" if there are none; set by the scheduler

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.prompt_len

    @property
    def rank(self) -> tuple[int, float, str, int]:
        """Order of service: high priority first, then first come."""
        return (-self.request.priority, self.request.arrival_s, self.request.id, self.index)

    @property
    def is_prefill(self) -> bool:
        """More than the newest token is still to be computed."""
        return self.num_computed < len(self.token_ids) - 1

    def name_blocks(self, num_tokens: int, block_size: int) -> list[bytes]:
        """Names of the full blocks of the first `num_tokens` tokens; remembers what it hashed."""
        wanted = num_tokens // block_size
        if wanted > len(self.names):
            parent = self.names[-1] if self.names else self.chain
            start = len(self.names) * block_size
            self.names += extend_chain(parent, self.token_ids[: wanted * block_size], start, block_size)
        return self.names[:wanted]


@dataclass(slots=True, eq=False)
class Arrival:
    """KV that stands on another worker, and the sequences that wait for it."""

    sequences: list[Sequence]
    num_tokens: int  # tokens of KV on their way
    lease_id: str
    blocks: list[int] = field(default_factory=list)  # local blocks, cached ones first; set by the scheduler
    num_skip: int = 0  # leading blocks that were found in the local cache and need no transfer
    lent: list[int] | None = None  # ids under which the owner's blocks can be read where they lie

    @property
    def rank(self) -> tuple[int, float, str, int]:
        return self.sequences[0].rank


@dataclass(slots=True, frozen=True)
class Chunk:
    """Tokens start to start + count of a sequence, drafts included, to be computed in this step."""

    sequence: Sequence
    start: int
    count: int
    num_drafts: int

    @property
    def samples(self) -> bool:
        """The chunk reaches the newest known token, so the step yields the next one."""
        return self.start + self.count == len(self.sequence.token_ids) + self.num_drafts


@dataclass(slots=True, frozen=True)
class StepPlan:
    chunks: list[Chunk]
    copies: list[tuple[int, int]]  # (from, to): blocks to be copied before the step writes
    fetches: list[Arrival]  # transfers to start now
    preempted: list[Sequence]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks)
