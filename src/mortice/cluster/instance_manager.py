"""The workers there are and what each wears: starts, flips, drains, ends and replaces them, as the control plane decides.

A worker is a body, a role is a coat: every worker can prefill and decode, so a flip is a word in the books. Nothing is
loaded or moved by it; what the worker has it finishes, and from that instant new requests of its new role may go to it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from mortice.cluster.decisions import Decisions
from mortice.cluster.feed import Feed
from mortice.cluster.hosts import MAX_WORKERS, Host
from mortice.cluster.launcher import Body, Launcher, end, oom_kills
from mortice.cluster.membership import Member, Membership
from mortice.cluster.request_router import RequestRouter
from mortice.cluster.views import action_words
from mortice.engine.config import WorkerConfig
from mortice.sched import events
from mortice.sched.actions import Bounds, Flip, Start, Stop, Undrain, reshape
from mortice.sched.controller import Decision
from mortice.sched.fleet import ROLES, Role
from mortice.sched.observation import Target
from mortice.sched.placing import Place, choose_place
from mortice.sched.recovery import is_blamed
from mortice.specs.errors import MorticeError, NotFound, RequestError, WrongState
from mortice.specs.messages import Call, PeerGone, ToWorker
from mortice.transport.segment import sweep

log = logging.getLogger(__name__)

STARTUP_S = 300.0  # a worker that is not ready after so long is given up
LEAVE_S = 5.0  # a drained worker that was told to end may take so long
TURN_S = 0.05  # between looks at what a draining worker still has


class InstanceManager:
    """Carries out on processes what is decided, and tells the control plane what becomes of them."""

    def __init__(
        self,
        *,
        decisions: Decisions,
        members: Membership,
        router: RequestRouter,
        feed: Feed,
        launcher: Launcher,
        hosts: Callable[[], Sequence[Host]],
        config_of: Callable[[Member], WorkerConfig],
        send: Callable[[str, ToWorker], bool],
        on_gone: Callable[[str], None],
        shm_prefix: str,
    ) -> None:
        """`launcher` starts workers on this host, `hosts` are the others. `on_gone` hears the id of every life that is over,
        before its requests go elsewhere."""
        self._decisions = decisions
        self._members = members
        self._router = router
        self._feed = feed
        self._launcher = launcher
        self._hosts = hosts
        self._config_of = config_of
        self._send = send
        self._on_gone = on_gone
        self._shm_prefix = shm_prefix
        self._tasks: set[asyncio.Task] = set()
        self._num_oom_kills = oom_kills()
        self._is_stopping = False

    # -- from nothing to workers, and back ------------------------------------------------------------------------

    async def start(self, counts: dict[Role, int]) -> None:
        """Order the first workers; `hello` of each member says when it is ready."""
        for role, count in counts.items():
            for _ in range(count):
                await self.order(role, self._launcher)

    async def order(self, role: Role, launcher: Launcher) -> Member:
        """A worker that the plane did not ask for: the first ones, and those that other hosts bring."""
        self._decisions.hear(events.Ordered(self._decisions.now(), role))
        member = self._members.add(role, launcher)
        await self._launch(member)
        return member

    async def stop(self) -> None:
        self._is_stopping = True
        # A worker that has not said hello hears nothing yet: it gets no time to end by itself.
        bodies = [(m.body, LEAVE_S if m.hello else 0.0) for m in self._members if m.body]
        for member in self._members:
            if member.hello is not None:
                self._send(member.worker_id, Call(id=0, verb="shutdown"))
        await asyncio.gather(*(end(body, grace_s) for body, grace_s in bodies))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- decisions ------------------------------------------------------------------------------------------------

    async def run(self, period_s: float) -> None:
        """Ask for a decision every period, and carry it out. Until cancelled."""
        while True:
            await asyncio.sleep(period_s)
            try:
                self.carry_out(self._decisions.decide())
            except Exception:  # requests go on with the roles there are
                log.exception("a turn of the control loop failed")

    def carry_out(self, decision: Decision) -> None:
        for action in decision.actions:
            match action:
                case Flip(worker_id, role):
                    member = self._members.living(worker_id)
                    if member is not None:
                        self._put_on(member, role)
                case Undrain(worker_id, role):
                    member = self._members.living(worker_id)
                    if member is not None:
                        member.is_draining = False
                        self._put_on(member, role)
                case Start(role):
                    self._spawn(self._start(role))
                case Stop(worker_id):
                    member = self._members.living(worker_id)
                    if member is not None:
                        self._spawn(self._drain(member))
        if decision.actions:
            log.info("%s: %s", decision.reason, ", ".join(map(action_words, decision.actions)))
            self._router.retry_held()

    def wear(self, name: str, role: Role) -> None:
        """An operator's order. Raises NotFound, or WrongState where nobody would be left to decode."""
        member = self._members.find(name)
        if member is None or not member.hello:
            raise NotFound(f"no live worker {name[:100]!r}", param="worker_id")
        if member.is_draining:
            raise WrongState(f"worker {name} is draining: it will end")
        if member.role == role:
            return
        if role == "prefill" and not any(
            m.role != "prefill" and m.is_ready and m is not member for m in self._members
        ):
            raise WrongState("somebody has to decode: give another worker the role first")
        self._decisions.hear(events.Worn(self._decisions.now(), member.worker_id, role))
        self._put_on(member, role)
        self._router.retry_held()

    def divide(self, wanted: dict[Role, int]) -> None:
        """An operator's order for all: so many workers of each role. The least busy change; raises RequestError where the
        numbers are not those of the workers there are."""
        plane = self._decisions.plane
        standing = [s for s in plane.standing() if not s.is_draining]
        target = Target(wanted["prefill"], wanted["decode"], wanted["mixed"])
        if sum(wanted.values()) != len(standing):
            raise RequestError(
                f"there are {len(standing)} workers to divide, not {sum(wanted.values())}", param="prefill"
            )
        if target.decode + target.mixed < 1:
            raise WrongState("somebody has to decode: decode or mixed must be at least 1")
        bounds = Bounds(can_scale=False, max_flips=len(standing))
        for action in reshape(standing, dict.fromkeys(ROLES, 0), target, bounds):
            assert isinstance(action, Flip)
            self._decisions.hear(events.Worn(self._decisions.now(), action.worker_id, action.role))
            member = self._members.living(action.worker_id)
            if member is not None:
                self._put_on(member, action.role)
        self._router.retry_held()

    def _put_on(self, member: Member, role: Role) -> None:
        if member.role != role:
            log.info("worker %s: %s -> %s", member.worker_id, member.role, role)
            self._feed.publish("role", worker_id=member.worker_id, detail=f"{member.role} to {role}")
        member.role = role

    async def _start(self, role: Role) -> None:
        """The plane counts it as starting already."""
        await self._launch(self._members.add(role, self._place(role)))

    def _place(self, role: Role) -> Launcher:
        """Hosts that joined take up to what they offered; this one takes all that the plane may ask for."""
        hosts = self._hosts()
        here = Counter(m.role for m in self._members if not m.launcher.host)
        places = []
        for host in hosts:
            roles = Counter(m.role for m in self._members if m.launcher is host)
            places.append(Place(host.max_workers - roles.total(), roles))
        chosen = choose_place(role, [*places, Place(MAX_WORKERS, here)])
        return hosts[chosen] if chosen is not None and chosen < len(hosts) else self._launcher

    async def _drain(self, member: Member) -> None:
        """Nothing new goes to it; it ends when the last of what it has is over."""
        life = member.worker_id
        member.is_draining = True
        self._feed.publish("worker", worker_id=life, detail="draining")
        idle_since_s: float | None = None
        while member.is_draining and self._members.living(life) is member:
            if self._router.is_needed(life):
                idle_since_s = None
            elif idle_since_s is None:
                idle_since_s = self._decisions.now()
            elif member.stats_s > idle_since_s and member.is_empty:
                member.is_leaving = True
                self._send(life, Call(id=0, verb="shutdown"))
                if member.body is not None:
                    await end(member.body, LEAVE_S)
                return
            await asyncio.sleep(TURN_S)

    # -- lives ----------------------------------------------------------------------------------------------------

    async def _launch(self, member: Member) -> None:
        self._members.begin_life(member)
        try:
            member.body = await member.launcher.start(self._config_of(member))
        except MorticeError as error:
            self._give_up(member, error.message, error.status)
            return
        self._spawn(self._watch(member, member.body))

    async def _watch(self, member: Member, body: Body) -> None:
        """Wait for the end of one life; clear up after it, and start the next."""
        code = await body.wait()
        if self._is_stopping:
            return
        worker_id, was_ready = member.worker_id, member.hello is not None
        lived_s = self._members.lived_s(member)
        log.warning("worker %s ended with code %s after %.1f s", worker_id, code, lived_s)
        self._feed.publish("worker", worker_id=worker_id, detail=f"ended with code {code}")
        num_oom_kills = oom_kills()
        ran_out_of_memory, self._num_oom_kills = num_oom_kills > self._num_oom_kills, num_oom_kills
        self.bury(
            member,
            blamed=is_blamed(code, was_silenced=member.is_silenced, ran_out_of_memory=ran_out_of_memory),
        )
        if member.is_leaving or member.is_draining:
            self._members.remove(member)
            return
        if was_ready:
            self._decisions.hear(events.Ordered(self._decisions.now(), member.role))
        if member.failure is not None:  # it said why it cannot start; trying again would change nothing
            self._give_up(member, member.failure, member.failure_status)
            return
        delay_s = member.restarts.died(became_ready=was_ready, lived_s=lived_s)
        if delay_s is None or not member.launcher.is_alive:
            self._give_up(member, f"worker {member.place} could not be kept alive")
            return
        await asyncio.sleep(delay_s)
        if not self._is_stopping:
            await self._launch(member)

    def _give_up(self, member: Member, why: str, status: int = 500) -> None:
        """Nobody will fill this place."""
        member.failure, member.failure_status = why, status
        log.error("%s", why)
        self._decisions.hear(events.StartFailed(self._decisions.now(), member.role))
        if self._decisions.has_begun and (member.launcher.host or not member.was_ready):
            self._members.remove(member)
        self._keep_decoding()
        self._router.retry_held()

    def _keep_decoding(self) -> None:
        """Where the last place that decodes was given up, a prefill worker takes over: it can do both."""
        if any(m.role != "prefill" and not m.failure and not m.is_draining for m in self._members):
            return
        member = next((m for m in self._members if m.is_ready), None)
        if member is not None:
            log.warning("nobody is left to decode: worker %s does from now on", member.worker_id)
            self._decisions.hear(events.Worn(self._decisions.now(), member.worker_id, "decode"))
            self._put_on(member, "decode")

    def bury(self, member: Member, *, blamed: bool) -> None:
        """The life is over: its words are not heard any more, its leases are void, its requests go elsewhere."""
        worker_id, hello = member.worker_id, member.hello
        member.hello, member.is_fenced = None, True
        if hello is not None:
            self._decisions.hear(events.Left(self._decisions.now(), worker_id))
        here = [m.body.pid for m in self._members if m.body and m is not member and not m.launcher.host]
        sweep(self._shm_prefix, here)
        if hello is not None:
            for other in self._members:
                self._send(other.worker_id, PeerGone(hello.pool.pool_id))
        self._on_gone(worker_id)
        self._router.worker_left(worker_id, blamed=blamed)

    async def watch_over(self, turn_s: float) -> None:
        """Fence and end whoever has been silent for too long, or does not get ready. Until cancelled."""
        while True:
            before_s = self._decisions.now()
            await asyncio.sleep(turn_s)
            if self._decisions.now() - before_s > turn_s + self._members.silence_s / 2:
                continue  # it was this process that stood still: what they said meanwhile has yet to be read
            for member in self._members.silent():
                log.error(
                    "worker %s has been silent for %g s: fenced", member.worker_id, self._members.silence_s
                )
                self._fence(member)
            for member in self._members.unborn(STARTUP_S):
                log.error("worker %s was not ready after %g s", member.worker_id, STARTUP_S)
                self._fence(member)

    def _fence(self, member: Member) -> None:
        """From here on it is not heard. What it has goes elsewhere when it is known to be gone (`_watch`): memory that it
        may still write to is not given away before."""
        member.is_silenced = member.is_fenced = True
        if member.body is not None:
            member.body.kill()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("looking after a worker failed", exc_info=task.exception())
