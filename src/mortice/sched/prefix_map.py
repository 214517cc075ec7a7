"""Which worker has which block in its prefix cache, as far as its events have told."""

from collections.abc import Sequence

from mortice.kv.hashing import chain_root, extend_chain
from mortice.specs.request import Request


def block_names(request: Request, *, model: str, weight_version: int, block_size: int) -> list[bytes]:
    """Names of the full blocks of a prompt, as every worker that runs these weights would name them."""
    root = chain_root(
        model=model, weight_version=weight_version, adapter=request.adapter, salt=request.cache_salt
    )
    return extend_chain(root, request.prompt_token_ids, 0, block_size)


class PrefixMap:
    """Stale by nature: a worker may have evicted what is listed here. Use it to choose, never to skip work."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._blocks: dict[str, set[bytes]] = {}

    def update(self, worker_id: str, stored: Sequence[bytes], removed: Sequence[bytes]) -> None:
        known = self._blocks.setdefault(worker_id, set())
        known.difference_update(removed)
        known.update(stored)

    def drop(self, worker_id: str) -> None:
        self._blocks.pop(worker_id, None)

    def cached_tokens(self, worker_id: str, names: Sequence[bytes]) -> int:
        """Tokens of the unbroken prefix that the worker is believed to hold."""
        known = self._blocks.get(worker_id, set())
        for i, name in enumerate(names):
            if name not in known:
                return i * self.block_size
        return len(names) * self.block_size
