"""How many bytes of bodies the server holds at once: each is bounded, and so are all together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mortice.specs.errors import Overloaded


class Bodies:
    """Bytes of every body that has begun to arrive and whose request has not ended."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes

    @contextmanager
    def room(self) -> Iterator[Callable[[int], None]]:
        """A function that takes so many bytes more for one request, given back at the end of the block. It raises
        Overloaded where there is no more room.
        """
        held = 0

        def take(num_bytes: int) -> None:
            nonlocal held
            if self.num_bytes + num_bytes > self._max_bytes:
                raise Overloaded(
                    f"the bodies of all requests together may hold {self._max_bytes} bytes",
                    code="bodies_full",
                )
            held += num_bytes
            self.num_bytes += num_bytes

        try:
            yield take
        finally:
            self.num_bytes -= held
