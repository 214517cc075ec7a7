"""Where a request goes: which worker prefills it, which decodes it, and when the cut is not worth making.

Prefill goes to the worker that would finish it first (fewest tokens queued before it, own uncached tokens included);
decode to the least loaded one (DistServe, OSDI'24, section 4.3). A prompt whose uncached part is short is
prefilled by its decode worker: the hand-over would cost more than the interference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mortice.sched.prefix_map import PrefixMap


@dataclass(frozen=True, slots=True)
class Load:
    """One live worker as the router sees it. `num_assigned` is exact; the rest is as old as the worker's last word."""

    worker_id: str
    role: str  # prefill | decode
    num_assigned: int  # requests given to it and not ended
    assigned_tokens: int  # prompt tokens given to it and not yet known to be computed
    num_free_blocks: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Route:
    """`prefill` is None where `decode` computes the prompt itself."""

    prefill: str | None
    decode: str
    reason: str


class Router:
    def __init__(self, *, local_prefill_tokens: int, prefixes: PrefixMap) -> None:
        self.local_prefill_tokens = local_prefill_tokens
        self.prefixes = prefixes

    def route(self, prompt_len: int, names: Sequence[bytes], loads: Sequence[Load]) -> Route | None:
        """None if no worker can decode."""
        decode = self.choose_decode(names, loads)
        if decode is None:
            return None
        prefills = [load for load in loads if load.role == "prefill" and self._fits(load, prompt_len)]
        if not prefills:
            return Route(None, decode.worker_id, "no prefill worker can take it")
        uncached = prompt_len - self.prefixes.cached_tokens(decode.worker_id, names)
        if uncached <= self.local_prefill_tokens:
            return Route(None, decode.worker_id, f"{uncached} uncached tokens: not worth a hand-over")

        def tokens_ahead(load: Load) -> tuple[int, str]:
            own = prompt_len - self.prefixes.cached_tokens(load.worker_id, names)
            return load.assigned_tokens + own, load.worker_id

        best = min(prefills, key=tokens_ahead)
        return Route(best.worker_id, decode.worker_id, f"{tokens_ahead(best)[0]} tokens to compute first")

    def choose_decode(self, names: Sequence[bytes], loads: Sequence[Load]) -> Load | None:
        """Fewest requests first; among equals the longest cached prefix, then the name."""
        decodes = [load for load in loads if load.role == "decode"]
        if not decodes:
            return None
        return min(
            decodes,
            key=lambda load: (
                load.num_assigned,
                -self.prefixes.cached_tokens(load.worker_id, names),
                load.worker_id,
            ),
        )

    def _fits(self, load: Load, prompt_len: int) -> bool:
        return prompt_len + 1 <= load.num_blocks * self.prefixes.block_size
