"""KV between workers as one of them sees it: what waits elsewhere to be read here, what is on its way here, and what stands
here for others under a lease."""

from collections import deque

from mortice.sched.batching import ACCEPT_SHARE, LEND_SHARE
from mortice.sim.books import Books
from mortice.sim.request import SimRequest


class Handover:
    __slots__ = (
        "_books",
        "_lends",
        "_num_leased_tokens",
        "_num_moving_tokens",
        "bridge",
        "fetching",
        "leased",
        "moving",
    )

    def __init__(self, books: Books, lends: bool) -> None:
        self._books = books
        self._lends = lends
        self.bridge: deque[SimRequest] = deque()  # their KV waits elsewhere
        self.moving: dict[SimRequest, None] = {}  # their KV is on its way here
        self.fetching: dict[SimRequest, None] = {}  # the beginning of their prompt is on its way here
        self.leased: dict[SimRequest, None] = {}  # their KV stands here and is wanted elsewhere
        self._num_moving_tokens = 0
        self._num_leased_tokens = 0

    # -- what comes ---------------------------------------------------------------------------------------------

    def may_accept(self) -> bool:
        """Somebody waits, and less than 5 % of memory is on its way (sched/batching.py)."""
        if not self.bridge:
            return False
        return not self.moving or self._num_moving_tokens < ACCEPT_SHARE * self._books.capacity

    def begin(self, request: SimRequest) -> None:
        """Room is made for its KV."""
        request.stage = "moving"
        self.moving[request] = None
        self._num_moving_tokens += request.booked

    def end(self, request: SimRequest) -> None:
        """Its KV is here, or does not come."""
        del self.moving[request]
        self._num_moving_tokens -= request.booked

    # -- what goes ----------------------------------------------------------------------------------------------

    def lease(self, request: SimRequest) -> None:
        """Its KV stays until somebody fetched it, or has read it to the end."""
        request.leased = request.booked
        self.leased[request] = None
        self._num_leased_tokens += request.leased
        request.is_lent = self._lends and self._num_leased_tokens <= LEND_SHARE * self._books.capacity

    def send_prefix(self, request: SimRequest) -> None:
        """What is cached here of its prompt stays until it was sent."""
        self._books.pin(request)
        self.leased[request] = None
        self._num_leased_tokens += request.leased

    def let_go(self, request: SimRequest) -> bool:
        """The lease on its KV is over. Whether there was one."""
        if request not in self.leased:
            return False
        del self.leased[request]
        self._num_leased_tokens -= request.leased
        self._books.release(request, request.leased, 0)
        return True
