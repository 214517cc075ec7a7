"""Peers' pools in shared memory, mapped once each and kept until the peer is forgotten."""

import threading

from mortice.specs.kv import PoolAddress
from mortice.transport import segment
from mortice.transport.errors import PeerGone


class PeerPool:
    """Reader's side of a `SharedPool`: the mapping of one peer's pool."""

    def __init__(self, address: PoolAddress, *, writable: bool) -> None:
        """Raises as `segment.opened` does."""
        mapped = segment.attach(address, writable=writable)
        self._closed = mapped.closed
        self.blocks = mapped.blocks
        self.generations = mapped.generations

    def check_open(self) -> None:
        """Raise PeerGone if the owner has closed the pool (an owner that was killed cannot say so)."""
        if self._closed[0]:
            raise PeerGone("the peer has closed its pool")


class PeerPools:
    """Mappings by pool and by right to write: a reader's mapping cannot be written, whatever goes wrong
    here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, bool], PeerPool] = {}
        self._forgotten: set[str] = set()

    def get(self, address: PoolAddress, *, writable: bool) -> PeerPool:
        """The mapping of a pool, made if need be. Raises PeerGone or TransferError."""
        key = (address.pool_id, writable)
        with self._lock:
            if address.pool_id in self._forgotten:
                raise PeerGone("the peer is gone")
            if key not in self._pools:
                self._pools[key] = PeerPool(address, writable=writable)
            return self._pools[key]

    def forget(self, pool_id: str) -> None:
        """Drop the mappings of a pool; memory is given back when the transfers that use it have ended."""
        with self._lock:
            self._forgotten.add(pool_id)
            for writable in (False, True):
                self._pools.pop((pool_id, writable), None)

    def forgotten(self, pool_id: str) -> bool:
        """Whether `forget` was said of this pool: it never comes back, for a restarted owner's pool has
        another id."""
        return pool_id in self._forgotten

    def clear(self) -> None:
        with self._lock:
            self._pools.clear()
