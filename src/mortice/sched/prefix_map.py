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
    """Stale by nature: a worker may have evicted what is listed here. Use it to choose, never to skip work.

    Both directions are kept: a worker's blocks, and a block's workers in order of their word, so that the holders of a long
    prefix are found without asking every worker. Chains are evicted from their end (kv/pool.py), so that who holds a block
    holds what comes before it; depths are found by bisection.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._blocks: dict[str, set[bytes]] = {}
        self._holders: dict[bytes, dict[str, None]] = {}

    def update(self, worker_id: str, stored: Sequence[bytes], removed: Sequence[bytes]) -> None:
        known = self._blocks.setdefault(worker_id, set())
        for name in removed:
            if name in known:
                known.discard(name)
                self._let_go(worker_id, name)
        for name in stored:
            if name not in known:
                known.add(name)
                self._holders.setdefault(name, {})[worker_id] = None

    def drop(self, worker_id: str) -> None:
        for name in self._blocks.pop(worker_id, ()):
            self._let_go(worker_id, name)

    def cached_tokens(self, worker_id: str, names: Sequence[bytes]) -> int:
        """Tokens of the prefix that the worker is believed to hold."""
        known = self._blocks.get(worker_id)
        if not known or not names or names[0] not in known:
            return 0
        low, high = 1, len(names) + 1  # holds `low` blocks, not `high`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if names[middle - 1] in known else (low, middle)
        return low * self.block_size

    def holders(self, names: Sequence[bytes], limit: int) -> list[str]:
        """Up to `limit` workers that hold the longest prefix that anybody holds, and as many that hold half of it."""
        if not names or names[0] not in self._holders:
            return []
        low, high = 1, len(names) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if names[middle - 1] in self._holders else (low, middle)
        found: dict[str, None] = {}
        for depth in {low, (low + 1) // 2}:
            for worker_id in self._holders[names[depth - 1]]:
                found[worker_id] = None
                if len(found) >= limit:
                    break
        return list(found)

    def _let_go(self, worker_id: str, name: bytes) -> None:
        holders = self._holders[name]
        del holders[worker_id]
        if not holders:
            del self._holders[name]
