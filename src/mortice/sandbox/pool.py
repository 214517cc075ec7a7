"""Warm sandboxes: restored from one template ahead of time, parked, and handed out in less than a millisecond."""

import asyncio
import contextlib
from collections import deque

from mortice.sandbox.box import Box
from mortice.sandbox.contract import SandboxError, SandboxSpec
from mortice.sandbox.supervisor import Sandboxes
from mortice.specs.errors import MorticeError

REFILL_AFTER_S = 0.05  # whoever has just leased asks first
RETRY_S = 1.0
RETRY_MAX_S = 60.0


class WarmPool:
    """Keeps `size` sandboxes of one spec ready. Each got its own randomness and names when it was restored."""

    def __init__(self, boxes: Sandboxes, spec: SandboxSpec, *, size: int, prepare: str = "") -> None:
        self._boxes = boxes
        self._spec = spec
        self._size = size
        self._prepare = prepare
        self._ready: deque[Box] = deque()
        self._template: str | None = None
        self._wanted = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self._stack = contextlib.ExitStack()

    async def open(self) -> "WarmPool":
        """Make the template (`prepare` runs in its interpreter, imports for example) and fill the pool."""
        first = await self._boxes.create_box(self._spec)
        try:
            if self._prepare:
                result = await first.run_cell(self._prepare, cell_id="prepare")
                if not result.ok:
                    raise SandboxError(f"the template's code failed: {result.error or result.failure}")
            self._template = await first.snapshot()
            self._stack.enter_context(self._boxes.snapshots.held(self._template))
        finally:
            await first.destroy()
        await self._fill()
        self._filler = asyncio.create_task(self._keep_full())
        return self

    async def lease(self) -> Box:
        """A sandbox of the caller's own. Takes a restore's time when the pool is empty."""
        while self._ready:
            box = self._ready.popleft()
            self._wanted.set()
            if box.info.state == "ready":
                box.unpark()
                box.note("lease")
                return box
        return await self._restore()

    @property
    def num_ready(self) -> int:
        return len(self._ready)

    async def close(self) -> None:
        """Destroy what was not leased, and the template."""
        if self._filler is not None:
            self._filler.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._filler
        for box in self._ready:
            await box.destroy()
        self._ready.clear()
        self._stack.close()
        if self._template is not None:
            self._boxes.snapshots.remove(self._template)
            self._template = None

    async def __aenter__(self) -> "WarmPool":
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _restore(self) -> Box:
        if self._template is None:
            raise SandboxError("the pool is not open")
        return await self._boxes.restore(self._template)

    async def _fill(self) -> None:
        while len(self._ready) < self._size:
            box = await self._restore()
            await box.park_if_quiet()
            self._ready.append(box)

    async def _keep_full(self) -> None:
        wait_s = RETRY_S
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await asyncio.sleep(REFILL_AFTER_S)
            try:
                await self._fill()
                wait_s = RETRY_S
            except (MorticeError, OSError) as error:  # the host may be full; leases still work, slower
                self._boxes.audit.append("pool_refill_failed", error=str(error)[:500])
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_MAX_S)
                self._wanted.set()
