"""The books of a block pool: who holds a block, what it holds, which one goes next.

The free list is the prefix cache. A block whose last holder lets go keeps its name until it is given out again, so it can
be found and taken back; the order of the free list is the order of eviction:

    head -> | never filled or unnamed | named, released longest ago | ... | named, released last | <- tail

Holders release a sequence's blocks from its tail to its head, so long chains are eaten from behind.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol


class Counters(Protocol):
    """Integers by position: a list, or an array in shared memory."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


class BlockPool:
    """Counts references; never touches memory.

    `generations[b]` goes up each time block b is given to new content: a peer that reads under a descriptor compares it
    before and after its copy. The caller may pass a view of shared memory.
    """

    def __init__(self, num_blocks: int, generations: Counters | None = None) -> None:
        if num_blocks < 1:
            raise ValueError("a pool needs at least one block")
        self.num_blocks = num_blocks
        self.generations: Counters = [0] * num_blocks if generations is None else generations
        self._refs = [0] * num_blocks
        self._name: list[bytes | None] = [None] * num_blocks
        self._by_name: dict[bytes, int] = {}
        # A doubly linked list in two arrays; entry num_blocks is the sentinel between tail and head.
        self._next = [*range(1, num_blocks + 1), 0]
        self._prev = [num_blocks, *range(num_blocks)]
        self.num_free = num_blocks
        self.stored: list[bytes] = []  # names entered since the last drain_events
        self.removed: list[bytes] = []

    def lookup(self, names: Sequence[bytes]) -> list[int]:
        """Blocks that hold the longest known prefix of this chain. They are not yet held: `acquire` them."""
        blocks = []
        for name in names:
            block = self._by_name.get(name)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def acquire(self, blocks: Iterable[int]) -> None:
        """Hold each block once more; takes free ones off the free list."""
        for block in blocks:
            if self._refs[block] == 0:
                self._unlink(block)
            self._refs[block] += 1

    def num_acquirable_free(self, blocks: Iterable[int]) -> int:
        """How many of these blocks stand on the free list: what `acquire` would take from `num_free`."""
        return sum(self._refs[block] == 0 for block in blocks)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks for new content, each held once and with a new generation; None if there are not enough."""
        if count > self.num_free:
            return None
        blocks = []
        for _ in range(count):
            block = self._next[self.num_blocks]
            self._unlink(block)
            self._forget(block)
            self._refs[block] = 1
            self.generations[block] += 1
            blocks.append(block)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of a sequence's blocks, given from head to tail."""
        for block in reversed(blocks):
            if self._refs[block] <= 0:
                raise AssertionError(f"block {block} released more often than held")
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._link(block, at_head=self._name[block] is None)

    def commit(self, block: int, name: bytes) -> None:
        """Enter a full block, held by the caller, into the prefix index. The first block of a name keeps it."""
        if self._name[block] is None and name not in self._by_name:
            self._name[block] = name
            self._by_name[name] = block
            self.stored.append(name)

    def refs(self, block: int) -> int:
        return self._refs[block]

    def forget_all(self) -> None:
        """Empty the prefix index; held blocks stay held."""
        for block in list(self._by_name.values()):
            self._forget(block)

    def drain_events(self) -> tuple[list[bytes], list[bytes]]:
        """Names stored and removed since the last call."""
        events = self.stored, self.removed
        self.stored, self.removed = [], []
        return events

    def check_integrity(self, held: Iterable[int]) -> None:
        """Assert that `held` (block ids, one an expected reference) and the free list account for every block."""
        expected = [0] * self.num_blocks
        for block in held:
            expected[block] += 1
        wrong = [b for b in range(self.num_blocks) if expected[b] != self._refs[b]]
        if wrong:
            b = wrong[0]
            raise AssertionError(
                f"{len(wrong)} blocks leaked; block {b} has {self._refs[b]} holders, not {expected[b]}"
            )
        free, block = 0, self._next[self.num_blocks]
        while block != self.num_blocks:
            if self._refs[block]:
                raise AssertionError(f"block {block} is free and held")
            free += 1
            block = self._next[block]
        if not free == self.num_free == self.num_blocks - sum(r > 0 for r in self._refs):
            raise AssertionError(f"free list has {free} blocks, the counter says {self.num_free}")
        for name, block in self._by_name.items():
            if self._name[block] != name:
                raise AssertionError(f"block {block} is indexed under a name that it does not bear")

    def _forget(self, block: int) -> None:
        name = self._name[block]
        if name is not None:
            self._name[block] = None
            del self._by_name[name]
            self.removed.append(name)

    def _unlink(self, block: int) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before], self._prev[after] = after, before
        self.num_free -= 1

    def _link(self, block: int, *, at_head: bool) -> None:
        after = self._next[self.num_blocks] if at_head else self.num_blocks
        before = self._prev[after]
        self._next[before] = self._prev[after] = block
        self._prev[block], self._next[block] = before, after
        self.num_free += 1
