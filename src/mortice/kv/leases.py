"""Blocks kept for somebody else: a promise with an end, renewed by heartbeat, over exactly once."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Lease:
    lease_id: str
    request_id: str
    blocks: list[int]
    deadline_s: float


class LeaseTable:
    """Leases that the owner of a pool has granted. Time comes in as an argument.

    `release` and `expire` hand back the blocks; from then on the id is unknown, and every later word about it is
    ignored, so a duplicated, delayed or reordered release can never free a block twice.
    """

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._leases: dict[str, Lease] = {}

    def grant(self, lease_id: str, request_id: str, blocks: list[int], now_s: float) -> None:
        if lease_id in self._leases:
            raise AssertionError(f"lease {lease_id} granted twice")
        self._leases[lease_id] = Lease(lease_id, request_id, blocks, now_s + self.lease_s)

    def renew(self, lease_ids: Iterable[str], now_s: float) -> None:
        """Unknown ids are ignored: the holder finds out when it reads."""
        for lease_id in lease_ids:
            lease = self._leases.get(lease_id)
            if lease is not None:
                lease.deadline_s = now_s + self.lease_s

    def release(self, lease_id: str) -> list[int]:
        """The lease's blocks, now the caller's to release; empty if the id is not (or no longer) known."""
        lease = self._leases.pop(lease_id, None)
        return lease.blocks if lease else []

    def release_request(self, request_id: str) -> list[int]:
        """Blocks of every lease granted for this request (it was cancelled)."""
        ids = [lease.lease_id for lease in self._leases.values() if lease.request_id == request_id]
        return [block for lease_id in ids for block in self.release(lease_id)]

    def expire(self, now_s: float) -> list[Lease]:
        """Leases whose deadline has passed, removed from the table."""
        over = [lease for lease in self._leases.values() if lease.deadline_s <= now_s]
        for lease in over:
            del self._leases[lease.lease_id]
        return over

    def get(self, lease_id: str) -> Lease | None:
        return self._leases.get(lease_id)

    @property
    def num_blocks(self) -> int:
        return sum(len(lease.blocks) for lease in self._leases.values())

    def held_blocks(self) -> list[int]:
        return [block for lease in self._leases.values() for block in lease.blocks]

    def __len__(self) -> int:
        return len(self._leases)
