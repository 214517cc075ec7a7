"""KV memory of a simulated worker: by count where nothing is shared, by the real block pool where prompts have prefixes.

Both count tokens in whole blocks. `admit` books a prompt and answers what of it was cached; growth while decoding is booked
without names.
"""

from mortice.kv.pool import BlockPool
from mortice.sim.request import SimRequest


class CountedBooks:
    """No prefix is shared: used tokens are a number."""

    __slots__ = ("block_size", "capacity", "used")

    def __init__(self, capacity: int, block_size: int) -> None:
        self.block_size = block_size
        self.capacity = capacity // block_size * block_size
        self.used = 0

    @property
    def free(self) -> int:
        return self.capacity - self.used

    def cached(self, request: SimRequest) -> int:
        return 0

    def admit(self, request: SimRequest, num_tokens: int, spare: int) -> bool:
        """Book `num_tokens` for the request if they fit with `spare` tokens left."""
        need = -(-num_tokens // self.block_size) * self.block_size
        if self.used + need + spare > self.capacity:
            return False
        self.used += need
        request.booked = need
        request.hit = 0
        return True

    def admit_lent(self, request: SimRequest, spare: int) -> bool:
        """Book it whose KV is read elsewhere: the block that is copied before it is written."""
        return self.admit(request, 1, spare)

    def grow(self, num_tokens: int) -> None:
        self.used += num_tokens

    def release(self, request: SimRequest, booked: int, grown: int) -> None:
        """All that is booked for it: what its admission booked, and `grown` tokens since."""
        self.used -= booked + grown

    def commit(self, request: SimRequest) -> None:
        """Its prompt is computed."""

    def pin(self, request: SimRequest) -> None:
        """Its prefix stays until `release`. There is none."""
        request.leased = 0

    def take_in(self, request: SimRequest, num_tokens: int) -> None:
        """The first `num_tokens` of its prompt are here now: in the cache, if there is room."""

    def events(self) -> tuple[list[bytes], list[bytes]]:
        return [], []

    def check(self, booked: int, grown: int) -> None:
        """Assert that admissions and `grown` tokens account for all that is used."""
        if self.used != booked + grown:
            raise AssertionError(f"{self.used} tokens are booked, requests account for {booked} and {grown}")


class PooledBooks:
    """Prompts share blocks by name, on the pool that the engine uses."""

    __slots__ = ("_blocks", "_grown", "_grown_blocks", "block_size", "capacity", "pool")

    def __init__(self, capacity: int, block_size: int) -> None:
        self.block_size = block_size
        self.pool = BlockPool(max(1, capacity // block_size))
        self.capacity = self.pool.num_blocks * block_size
        self._blocks: dict[int, list[int]] = {}  # of a request, by its index
        self._grown = 0
        self._grown_blocks: list[int] = []

    @property
    def used(self) -> int:
        return self.capacity - self.free

    @property
    def free(self) -> int:
        in_last = len(self._grown_blocks) * self.block_size - self._grown
        return self.pool.num_free * self.block_size + in_last

    def cached(self, request: SimRequest) -> int:
        """Tokens of its prompt that stand here; at least one is left to compute."""
        names = request.names[: (request.prompt_len - 1) // self.block_size]
        return len(self.pool.lookup(names)) * self.block_size if names else 0

    def admit(self, request: SimRequest, num_tokens: int, spare: int) -> bool:
        names = request.names[: (request.prompt_len - 1) // self.block_size]
        hit = self.pool.lookup(names)
        need = -(-num_tokens // self.block_size) - len(hit)
        room = self.pool.num_free - self.pool.num_acquirable_free(hit)
        if need + -(-spare // self.block_size) > room:
            return False
        self.pool.acquire(hit)
        new = self.pool.allocate(need)
        assert new is not None
        self._blocks[request.index] = hit + new
        request.booked = (len(hit) + len(new)) * self.block_size
        request.hit = len(hit) * self.block_size
        return True

    def admit_lent(self, request: SimRequest, spare: int) -> bool:
        hit = self.pool.lookup(request.names[: (request.prompt_len - 1) // self.block_size])
        if 1 - (-spare // self.block_size) > self.pool.num_free - self.pool.num_acquirable_free(hit):
            return False
        self.pool.acquire(hit)
        new = self.pool.allocate(1)
        assert new is not None
        self._blocks[request.index] = hit + new
        request.booked = (len(hit) + len(new)) * self.block_size
        request.hit = len(hit) * self.block_size
        return True

    def grow(self, num_tokens: int) -> None:
        self._grown += num_tokens
        self._settle()

    def release(self, request: SimRequest, booked: int, grown: int) -> None:
        self.pool.release(self._blocks.pop(request.index))
        self._grown -= grown
        self._settle()

    def commit(self, request: SimRequest) -> None:
        blocks = self._blocks[request.index]
        for block, name in zip(blocks, request.names, strict=False):
            self.pool.commit(block, name)

    def pin(self, request: SimRequest) -> None:
        blocks = self.pool.lookup(request.names)
        self.pool.acquire(blocks)
        self._blocks[request.index] = blocks
        request.leased = len(blocks) * self.block_size

    def take_in(self, request: SimRequest, num_tokens: int) -> None:
        names = request.names[: num_tokens // self.block_size]
        here = self.pool.lookup(names)
        self.pool.acquire(here)
        new = self.pool.allocate(len(names) - len(here))
        for block, name in zip(new or [], names[len(here) :], strict=False):
            self.pool.commit(block, name)
        self.pool.release(here + (new or []))

    def events(self) -> tuple[list[bytes], list[bytes]]:
        return self.pool.drain_events()

    def check(self, booked: int, grown: int) -> None:
        held = sum(map(len, self._blocks.values())) * self.block_size
        if held != booked:
            raise AssertionError(f"{held} tokens are booked for prompts, requests account for {booked}")
        if self._grown != grown:
            raise AssertionError(
                f"{self._grown} tokens are booked beside prompts, requests account for {grown}"
            )
        self.pool.check_integrity(
            [b for blocks in self._blocks.values() for b in blocks] + self._grown_blocks
        )

    def _settle(self) -> None:
        want = -(-self._grown // self.block_size)
        if want > len(self._grown_blocks):
            new = self.pool.allocate(min(want - len(self._grown_blocks), self.pool.num_free))
            self._grown_blocks += new or []
        elif want < len(self._grown_blocks):
            self.pool.release(self._grown_blocks[want:])
            del self._grown_blocks[want:]


Books = CountedBooks | PooledBooks
