"""Who may have seen what: vector clocks over the bytes of a block's shared memory.

An actor is a warp, its products, its stores, or the loads that complete on one barrier. Each access is checked against
the last writes and reads of its bytes: one that is not ordered after them is a race. A write through the ordinary path
must be fenced before asynchronous work reads it, or overwrites it (PTX ISA, 8.6 and 9.7.9.25: proxies).
"""

import numpy as np

from mortice.tile.diagnostics import CheckError, Span

KINDS = (
    "warp",
    "a product of warp",
    "a store by warp",
    "a cp.async of warp",
)  # actors: one of each kind a warp, then loads by barrier
GRAIN = 4  # bytes that share a record
Known = tuple[
    np.ndarray, np.ndarray
]  # for each actor: its latest step known here, its latest step that was fenced


class Clocks:
    """steps[a]: how often actor a has published; seen[a][b]: the latest step of b that a is ordered after."""

    def __init__(self, warps: int, barriers: int, bytes: int) -> None:
        actors = len(KINDS) * warps + barriers
        self.warps = warps
        cells = -(-bytes // GRAIN)
        self.steps = np.ones(actors, np.int64)
        self.seen = np.zeros((actors, actors), np.int64)
        self.fenced = np.zeros((actors, actors), np.int64)
        self.writer = np.full(cells, -1, np.int16)
        self.written = np.zeros(cells, np.int64)
        self.direct = np.zeros(cells, bool)  # the last write went the ordinary path
        self.readers = np.zeros((actors, cells), np.int64)

    def publish(self, actor: int) -> Known:
        """What is handed on by an arrival: all that the actor did and knew before."""
        known = self.seen[actor].copy(), self.fenced[actor].copy()
        known[0][actor] = self.steps[actor]
        self.steps[actor] += 1
        return known

    def learn(self, actor: int, known: Known) -> None:
        np.maximum(self.seen[actor], known[0], out=self.seen[actor])
        np.maximum(self.fenced[actor], known[1], out=self.fenced[actor])

    def fence(self, actor: int) -> None:
        """Ordinary writes of this warp, and those it knows of, become visible to asynchronous work."""
        self.fenced[actor] = np.maximum(self.fenced[actor], self.seen[actor])
        self.fenced[actor][actor] = self.steps[actor]

    def begin(self, issuer: int, actor: int) -> None:
        """Asynchronous work starts from what its issuer knows."""
        known = self.publish(issuer)
        self.learn(actor, known)

    def read(
        self, actor: int, addresses: np.ndarray, span: Span, name: str, asynchronous: bool = False
    ) -> None:
        cells = np.unique(addresses // GRAIN)
        self._ordered(actor, cells, span, name, "reads", asynchronous)
        self.readers[actor, cells] = self.steps[actor]

    def write(
        self, actor: int, addresses: np.ndarray, span: Span, name: str, asynchronous: bool = False
    ) -> None:
        cells = np.unique(addresses // GRAIN)
        self._ordered(actor, cells, span, name, "writes", asynchronous)
        late = self.readers[:, cells] > self.seen[actor][:, None]
        late[actor] = False
        if late.any():
            other = int(np.argmax(late.any(1)))
            problem = f"{name} writes shared memory that {self.label(other)} may still be reading"
            raise CheckError(span, name, problem, "wait until it is done (an empty barrier, or a sync)")
        self.writer[cells], self.written[cells], self.direct[cells] = (
            actor,
            self.steps[actor],
            not asynchronous,
        )

    def _ordered(
        self, actor: int, cells: np.ndarray, span: Span, name: str, verb: str, asynchronous: bool
    ) -> None:
        writers, steps = self.writer[cells], self.written[cells]
        foreign = (writers >= 0) & (writers != actor)
        known = self.seen[actor][np.maximum(writers, 0)]
        if (foreign & (steps > known)).any():
            other = int(writers[np.argmax(foreign & (steps > known))])
            problem = (
                f"{name} {verb} shared memory that {self.label(other)} is writing, with no order between them"
            )
            raise CheckError(span, name, problem, "wait for it (a full barrier, or a sync)")
        if asynchronous:
            fenced = self.fenced[actor][np.maximum(writers, 0)]
            bare = foreign & self.direct[cells] & (steps > fenced)
            if bare.any():
                other = int(writers[np.argmax(bare)])
                problem = (
                    f"{name} {verb} asynchronously what {self.label(other)} stored, and no fence is between"
                )
                raise CheckError(
                    span, name, problem, "fence_async in each storing thread before the hand-over"
                )

    def label(self, actor: int) -> str:
        kind, number = divmod(actor, self.warps)
        return f"{KINDS[kind]} {number}" if kind < len(KINDS) else "a load"
