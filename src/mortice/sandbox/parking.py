"""An idle machine costs nothing: it is stopped when nothing in it could go on by itself, and wakes with the next request."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from mortice.sandbox.contract import SandboxBusy, SandboxError
from mortice.sandbox.machine import Machine

PARK_AFTER_S = 2.0


class Parking:
    """Stops and wakes one machine. (An idle gVisor kernel spends 2 % of a core on its own clocks.)

    `idle` says whether the host waits for nothing from it, `quiet` asks the guest whether no command, child, thread or
    connection inside could go on by itself.
    """

    def __init__(
        self, machine: Machine, *, idle: Callable[[], bool], quiet: Callable[[], Awaitable[bool]]
    ) -> None:
        self._machine = machine
        self._idle = idle
        self._quiet = quiet
        self._parked = False
        self._num_holds = 0
        self._timer: asyncio.TimerHandle | None = None
        self._trying: asyncio.Task[None] | None = None

    async def if_quiet(self) -> bool:
        """Stop the machine if it may be; whether it stands still now."""
        if self._parked or not self._may():
            return self._parked
        if await self._quiet() and self._may():
            self._cancel()
            self._machine.park()
            self._parked = True
        return self._parked

    @contextmanager
    def held(self) -> Iterator[None]:
        """Awake until the end of the block: whoever works on the machine from outside must not find it stopped."""
        self._num_holds += 1
        self.wake()
        try:
            yield
        finally:
            self._num_holds -= 1
            if self._may():
                self.later()

    def wake(self) -> None:
        if self._parked:
            self._machine.unpark()
            self._parked = False
            self.later()

    def later(self) -> None:
        """Try to stop it once it has been left alone for a while."""
        self._cancel()
        self._timer = asyncio.get_running_loop().call_later(PARK_AFTER_S, self._now)

    def end(self, *, leave_parked: bool = False) -> None:
        """Try no more. The machine is awake afterwards, since a stopped one can be neither asked nor ended, or stays as it
        is until another owner wakes it."""
        self._cancel()
        if self._parked and not leave_parked:
            self._machine.unpark()
        self._parked = False

    def _may(self) -> bool:
        return self._num_holds == 0 and self._idle()

    def _now(self) -> None:
        self._timer = None
        self._trying = asyncio.ensure_future(self._try())

    async def _try(self) -> None:
        try:
            if not await self.if_quiet():
                self.later()
        except (SandboxError, SandboxBusy):
            return  # it is gone or going

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
