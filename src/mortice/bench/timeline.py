"""What one request felt like, from the instants at which its content came. Times in seconds of one clock.

    sent        first content        ...         last content
     |------ TTFT ------|-- gap --|-- gap --|-- gap --|
     |---------------------- E2E ---------------------|

TTFT: sent to the first non-empty content. E2E: sent to the last. TPOT = (last - first) / (n - 1) with n, the
output tokens, from the server's usage; undefined for n = 1. ITL: a chunk's gap spread evenly over the tokens
it brought.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Timeline:
    """One request as the client saw it. Written by the endpoint's `stream`, read by the report."""

    index: int
    prompt_len: int  # tokens asked for
    output_len: int  # tokens asked for
    due_s: float | None = None  # when an open loop meant to send it
    sent_s: float = 0.0
    ended_s: float = 0.0  # when the answer, or the failure, was complete
    chunk_s: list[float] = field(default_factory=list)  # arrival of each chunk with content
    chunk_chars: list[int] = field(default_factory=list)
    chunk_tokens: list[int] | None = None  # where the server says how many tokens each chunk brought
    prompt_tokens: int | None = None  # from usage
    cached_tokens: int | None = None  # from usage, where the server says
    usage_tokens: int | None = None  # output tokens, from usage
    finish_reason: str | None = None
    failure: str | None = None  # the kind of failure; None: it went well
    detail: str = ""  # one line about the failure

    @property
    def ok(self) -> bool:
        return self.failure is None

    @property
    def num_tokens(self) -> int:
        """Output tokens: the server's count, or that of chunks where it gives none."""
        return self.usage_tokens if self.usage_tokens is not None else len(self.chunk_s)

    @property
    def ttft_s(self) -> float:
        return self.chunk_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.chunk_s[-1] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        if self.num_tokens < 2:
            return None
        return (self.chunk_s[-1] - self.chunk_s[0]) / (self.num_tokens - 1)

    def tokens_by_chunk(self) -> list[int]:
        """How many of the `num_tokens` each chunk brought: the server's word, else a share by characters."""
        if self.chunk_tokens is not None and sum(self.chunk_tokens) == self.num_tokens:
            return self.chunk_tokens
        return share_tokens(self.num_tokens, self.chunk_chars)

    def itl_s(self) -> list[float]:
        return spread_gaps(self.chunk_s, self.tokens_by_chunk())


def share_tokens(num_tokens: int, weights: list[int]) -> list[int]:
    """Split `num_tokens` over chunks in proportion to `weights` (characters), in whole tokens that add up.

    Every chunk gets at least one where there are enough. With fewer tokens than chunks (a server that cuts a
    token's text) the first chunk gets one and the rest follow the running total.
    """
    num_chunks = len(weights)
    if num_chunks == 0 or num_tokens <= 0:
        return [0] * num_chunks
    if num_tokens < num_chunks:
        return [1, *_by_running_total(num_tokens - 1, weights[1:])]
    return [1 + extra for extra in _by_running_total(num_tokens - num_chunks, weights)]


def _by_running_total(count: int, weights: list[int]) -> list[int]:
    """Whole numbers in proportion to `weights` whose running total is the exact one, rounded half up."""
    if not any(weights):
        weights = [1] * len(weights)
    total, seen, given = sum(weights), 0, 0
    shares = []
    for weight in weights:
        seen += weight
        upto = (2 * count * seen + total) // (2 * total)
        shares.append(upto - given)
        given = upto
    return shares


def spread_gaps(chunk_s: list[float], tokens: list[int]) -> list[float]:
    """Gaps between tokens: the gap before a chunk, divided evenly over the tokens the chunk brought.

    The first chunk's gap is the TTFT, so its tokens add none here: a first chunk of c tokens leaves n - c
    gaps, never c - 1 made-up zeros. A chunk without a whole token lends its gap to the next one that has any
    (or, at the end, to the last that had): the gaps always add up to last - first.
    """
    gaps: list[float] = []
    carried = 0.0
    for before, now, count in zip(chunk_s, chunk_s[1:], tokens[1:], strict=False):
        carried += now - before
        if count:
            gaps += [carried / count] * count
            carried = 0.0
    if carried and gaps:
        gaps[-1] += carried
    return gaps
