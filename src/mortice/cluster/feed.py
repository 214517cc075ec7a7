"""What happens in the cluster, for whoever watches."""

import asyncio
import time
from collections.abc import AsyncIterator

from mortice.cluster.api import Happening

KEEP = 256  # entries a slow reader may fall behind before it loses the oldest


class Feed:
    """Publishing never waits and costs next to nothing while nobody watches."""

    def __init__(self) -> None:
        self._readers: set[asyncio.Queue[Happening]] = set()

    def publish(
        self,
        kind: str,
        *,
        request_id: str = "",
        worker_id: str = "",
        peer_id: str = "",
        num_tokens: int = 0,
        detail: str = "",
    ) -> None:
        if not self._readers:
            return
        happening = Happening(
            t_s=time.time(),
            kind=kind,
            request_id=request_id,
            worker_id=worker_id,
            peer_id=peer_id,
            num_tokens=num_tokens,
            detail=detail,
        )
        for queue in self._readers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(happening)

    async def subscribe(self) -> AsyncIterator[Happening]:
        queue: asyncio.Queue[Happening] = asyncio.Queue(KEEP)
        self._readers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._readers.discard(queue)
