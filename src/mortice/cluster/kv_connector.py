"""Who holds which KV for whom: the words about leases that go between readers and owners, by way of the cluster.

The blocks themselves never pass here: `transport/` moves them from pool to pool, or they are read where they lie. A lease's
name begins with the worker that granted it, so that a word finds its owner; what a fenced worker says about leases is not
passed on, and what it granted is over.
"""

from typing import Protocol

from mortice.specs.kv import KVDescriptor
from mortice.specs.messages import LeaseRelease, LeaseRenew, Pushed, PushTarget, ToWorker

LeaseWord = LeaseRenew | LeaseRelease | PushTarget | Pushed


class Post(Protocol):
    def send(self, worker_id: str, message: ToWorker) -> bool:
        """In order of the calls; False if that worker does not live (any more)."""


class KVConnector:
    def __init__(self, post: Post) -> None:
        self._post = post

    def hear(self, worker_id: str, word: LeaseWord) -> list[str]:
        """A word of a living worker. Answers the leases that are over by it."""
        match word:
            case LeaseRenew() | LeaseRelease():
                self._pass_on(word)
            case PushTarget():
                self._order_push(worker_id, word)
            case Pushed():
                self._post.send(word.target_lease_id.rpartition(">")[2], word)
        return word.lease_ids if isinstance(word, LeaseRelease) else []

    def release(self, descriptor: KVDescriptor) -> None:
        """Nobody will read under this lease."""
        self._post.send(owner_of(descriptor.lease_id), LeaseRelease([descriptor.lease_id]))

    def _pass_on(self, word: LeaseRenew | LeaseRelease) -> None:
        by_owner: dict[str, list[str]] = {}
        for lease_id in word.lease_ids:
            by_owner.setdefault(owner_of(lease_id), []).append(lease_id)
        for owner, ids in by_owner.items():
            self._post.send(owner, type(word)(ids))

    def _order_push(self, worker_id: str, word: PushTarget) -> None:
        """Pass a reader's order on to the owner; a dead owner's answer is given here."""
        if not self._post.send(owner_of(word.lease_id), word):
            lost = Pushed(
                lease_id=word.lease_id, target_lease_id=word.target.lease_id, error="the owner is gone"
            )
            self._post.send(worker_id, lost)


def owner_of(lease_id: str) -> str:
    """The worker that granted a lease."""
    return lease_id.partition("/")[0]
