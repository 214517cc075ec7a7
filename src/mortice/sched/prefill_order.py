"""Which waiting prompts a prefill worker takes next.

`fcfs` is DistServe's: from the head while the budget lasts, no look-ahead. `length` is DOPD's (arXiv 2511.20982): long
prompts go alone, short ones together up to a token cap and before the long, the boundary being the mean prompt that is
expected; nothing waits longer than `max_wait_s` for its turn, so that the long are not starved.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from mortice.specs.deployment import EngineLimits

OrderName = Literal["fcfs", "length"]


class Waiting(Protocol):
    """A prompt in a queue: tokens still to be computed, and since when it waits."""

    @property
    def tokens(self) -> int: ...

    @property
    def since_s(self) -> float: ...


class WaitingPrompt(NamedTuple):
    """A `Waiting` by itself."""

    tokens: int
    since_s: float


class PrefillOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`saturating_tokens` is L_m: from this length one prompt fills the device, so longer ones are batched with nothing."""

    order: OrderName = "fcfs"
    token_budget: int = 8192  # of a batch
    saturating_tokens: int = 512
    max_batch: int = 128
    max_wait_s: float = 2.0

    def pick(self, queue: Sequence[Waiting], now_s: float, boundary: float = 0.0) -> list[int]:
        """Positions in `queue` (oldest first) of the next batch; at least one if anything waits."""
        if not queue:
            return []
        if self.order == "fcfs":
            return self._from_head(queue)
        boundary = boundary or self.saturating_tokens
        if queue[0].tokens > boundary and now_s - queue[0].since_s > self.max_wait_s:
            return [0]
        short = [i for i, prompt in enumerate(queue) if prompt.tokens <= boundary]
        if not short:
            return [0]
        # Shortest first; one that waited too long goes before all.
        short.sort(key=lambda i: (now_s - queue[i].since_s <= self.max_wait_s, queue[i].tokens, i))
        chosen, total = [short[0]], queue[short[0]].tokens
        for i in short[1 : self.max_batch]:
            if total + queue[i].tokens > max(self.saturating_tokens, boundary):
                break
            chosen.append(i)
            total += queue[i].tokens
        return chosen

    def _from_head(self, queue: Sequence[Waiting]) -> list[int]:
        """Prompts below L_m together up to about L_m, longer ones alone (DistServe, section 4.3), within the budget."""
        total = queue[0].tokens
        chosen = [0]
        for i in range(1, min(len(queue), self.max_batch)):
            total += queue[i].tokens
            if total > min(self.token_budget, self.saturating_tokens):
                break
            chosen.append(i)
        return chosen


def order_of(limits: EngineLimits) -> PrefillOrder | None:
    """The order that a deployment names; a step's budget is what one long prompt fills. None: by rank, as many as fit."""
    if limits.prefill_order == "fcfs":
        return None
    return PrefillOrder(
        order=limits.prefill_order,
        token_budget=limits.token_budget,
        saturating_tokens=limits.token_budget,
        max_batch=limits.max_num_seqs,
    )
