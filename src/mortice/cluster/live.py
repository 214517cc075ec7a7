"""The live cluster: carries requests between the edge and worker processes, through their deaths.

The parts are DOPD's five: resource_monitor, request_router, kv_connector, instance_manager, request_scheduler; decisions.py
is the control plane that they tell and ask. Here they are put together, and the words between them and the workers passed
on. All of it runs on one event loop.
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from pathlib import Path
from typing import Any

import msgspec

from mortice.cluster.api import Division, Happening, ModelInfo, Role, Roles, WorkerInfo
from mortice.cluster.decisions import Decisions
from mortice.cluster.feed import Feed
from mortice.cluster.flight import Flight
from mortice.cluster.host_words import PREFIX
from mortice.cluster.hosts import MAX_WORKERS, Hosts
from mortice.cluster.instance_manager import STARTUP_S, InstanceManager
from mortice.cluster.kv_connector import KVConnector
from mortice.cluster.launcher import Launcher, LocalLauncher
from mortice.cluster.membership import Member, Membership
from mortice.cluster.request_router import RequestRouter
from mortice.cluster.resource_monitor import ResourceMonitor
from mortice.cluster.switchboard import Switchboard
from mortice.cluster.views import roles_view
from mortice.cost.step_fit import fit_steps
from mortice.engine.config import WorkerConfig
from mortice.sched import events
from mortice.sched.plane import Setup
from mortice.sched.prefix_map import block_names
from mortice.sched.setup import needs_times, setup_of
from mortice.specs.deployment import Deployment
from mortice.specs.errors import EngineError, MorticeError, RequestError, Unavailable, WrongState
from mortice.specs.messages import (
    Call,
    Deltas,
    FromWorker,
    Hello,
    KVEvents,
    LeaseRelease,
    LeaseRenew,
    Prefilled,
    Pushed,
    PushTarget,
    Reply,
    ToWorker,
    WorkerStats,
    decode_from_worker,
    encode,
)
from mortice.specs.request import Delta, Request
from mortice.specs.worker_times import WorkerTimes
from mortice.transport.segment import sweep

log = logging.getLogger(__name__)

CALL_S = 120.0


class LiveCluster:
    """Implements `cluster.api.Cluster` on worker processes."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        model_path: str,
        draft_model_path: str | None,
        threads: int,
        launcher: Launcher | None = None,
        decision_log: str | Path | None = None,
        workers_listen: str | None = None,
        join_token: str = "",
    ) -> None:
        """`launcher`: where workers are started; None: on this host. `decision_log`: file that gets every event with its
        answer. `workers_listen`: ADDRESS:PORT where other hosts may join who know `join_token`; None: nowhere."""
        if deployment.cluster is not None and deployment.cluster.fetch_prefixes:
            raise RequestError(
                "cluster.fetch_prefixes is simulated only: live workers read KV under leases, not out of each other's "
                "prefix caches; leave it out",
                param="cluster.fetch_prefixes",
            )
        self.deployment = deployment
        self._model_path, self._draft_model_path = model_path, draft_model_path
        self._threads = threads
        self._token = secrets.token_hex(32)
        self._shm_prefix = f"mortice-{secrets.token_hex(4)}"
        self._launcher = launcher or LocalLauncher()
        self._feed = Feed()
        self._switchboard = Switchboard(self._receive)
        self.decisions = Decisions(journal=decision_log)
        self._members = Membership(deployment.control.silence_s)
        self._monitor = ResourceMonitor(self.decisions)
        self._connector = KVConnector(self)
        self._router = RequestRouter(self.decisions, self._connector, self)
        self._manager = InstanceManager(
            decisions=self.decisions,
            members=self._members,
            router=self._router,
            feed=self._feed,
            launcher=self._launcher,
            hosts=lambda: self._hosts.launchers(),
            config_of=self._config_of,
            send=self.send,
            on_gone=self._forget,
            shm_prefix=self._shm_prefix,
        )
        self._workers_listen, self._join_token = workers_listen, join_token
        self._is_open = workers_listen is not None  # to other hosts
        self.joined_at = ""  # where other hosts join
        self._may_join = False  # not before the first workers are ready
        self._hosts = Hosts(
            say=lambda identity, data: self._switchboard.send(identity, data, is_remote=True),
            order=self._manager.order,
            room=lambda: (deployment.control.max_gpus or MAX_WORKERS) - len(self._members),
            silence_s=deployment.control.silence_s,
        )
        self._call_ids = itertools.count(1)
        self._calls: dict[int, tuple[str, asyncio.Future[dict]]] = {}
        self._tasks: set[asyncio.Task] = set()
        self._standing: list[tuple[str, dict[str, Any]]] = []  # verbs that a new life of a worker must repeat
        self._stopping = False
        self._model: ModelInfo | None = None

    # -- the contract of cluster/api.py -----------------------------------------------------------------------

    @property
    def model(self) -> ModelInfo:
        assert self._model is not None, "the cluster has not started"
        return self._model

    async def start(self) -> None:
        self._switchboard.open()
        self._spawn(self._manager.watch_over(min(1.0, self._members.silence_s / 4)))
        if self._launcher.host and self._workers_listen is None:
            # Its workers may be anywhere on this host: they come over TCP, with a token of their own.
            self._workers_listen, self._join_token = "127.0.0.1:0", secrets.token_hex(32)
        if self._workers_listen is not None:
            self.joined_at = self._switchboard.listen(self._workers_listen, self._join_token)
        await self._manager.start(self.deployment.roles)
        deadline = time.monotonic() + STARTUP_S
        while not all(member.hello for member in self._members):
            failed = next((m for m in self._members if m.failure), None)
            if failed is not None:
                raise _error_of(failed.failure_status, failed.failure or "")
            if time.monotonic() > deadline:
                raise EngineError(f"the workers were not ready after {STARTUP_S:.0f} s")
            await asyncio.sleep(0.02)
        self.decisions.begin(await self._setup())
        if self._is_open:
            log.info("workers of other hosts may join at %s", self.joined_at)
            self._may_join = True
            self._spawn(self._watch_hosts())
        self._spawn(self._manager.run(self.deployment.control.period_s))

    async def stop(self, drain_s: float) -> None:
        self._stopping = True
        deadline = time.monotonic() + drain_s
        while self._router and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for flight in self._router.flights():
            flight.fail(Unavailable("the server is shutting down"))
        await self._hosts.close()
        await self._manager.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._launcher.close()
        sweep(self._shm_prefix, ())
        await self._switchboard.close()
        self.decisions.close()

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        if self._stopping:
            raise Unavailable("the server is shutting down")
        if request.adapter is not None and request.adapter not in self.model.adapters:
            raise RequestError(f"adapter {request.adapter!r} is not loaded", param="model")
        if len(request.prompt_token_ids) + 1 > self.model.max_context:
            raise RequestError(
                f"the prompt has {len(request.prompt_token_ids)} tokens; "
                f"with one to answer, {self.model.max_context} is the most",
                param="prompt",
                code="context_length_exceeded",
            )
        if any(m.state == "asleep" for m in self._members):
            raise WrongState("the engine is asleep; wake it first")
        if request.id in self._router:
            raise RequestError(f"request id {request.id!r} is in use", param="request_id")
        heard: asyncio.Queue[Delta | MorticeError] = asyncio.Queue()
        flight = Flight(request, self._names_of(request), heard.put_nowait)
        try:
            self._router.open(flight)
            while not (flight.is_over and heard.empty()):
                item = await heard.get()
                if isinstance(item, MorticeError):
                    raise item
                yield item
        finally:
            self._router.close(flight)

    def end_sequence(self, request_id: str, index: int) -> None:
        self._router.end_sequence(request_id, index)

    def num_in_flight(self) -> int:
        return len(self._router)

    def ready(self) -> bool:
        return not self._stopping and any(m.is_ready and m.role != "prefill" for m in self._members)

    def workers(self) -> list[WorkerInfo]:
        return [member.info() for member in self._members]

    async def call(self, verb: str, args: dict[str, Any], worker_id: str | None = None) -> dict[str, dict]:
        targets = [m for m in self._members if m.hello and worker_id in (None, m.worker_id, m.place)]
        if not targets:
            raise RequestError(f"no live worker {worker_id!r}", param="worker_id")
        futures = {}
        for member in targets:
            call_id = next(self._call_ids)
            future: asyncio.Future[dict] = asyncio.get_running_loop().create_future()
            self._calls[call_id] = (member.worker_id, future)
            futures[member.worker_id] = future
            self.send(member.worker_id, Call(id=call_id, verb=verb, args=args))
        async with asyncio.timeout(CALL_S):
            results = await asyncio.gather(*futures.values(), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        answers = dict(zip(futures, (r for r in results if isinstance(r, dict)), strict=True))
        for member in targets:
            state = answers[member.worker_id].get("state")
            if state is not None and member.stats is not None:  # true at once, not only with its next word
                member.stats = msgspec.structs.replace(member.stats, state=state)
        self._refresh_model(answers.values())
        self._remember(verb, args)
        return answers

    def roles(self) -> Roles:
        return roles_view(self.decisions.plane, self.decisions.turns, self.workers())

    def wear(self, worker_id: str, role: Role) -> None:
        self._manager.wear(worker_id, role)

    def divide(self, division: Division) -> None:
        self._manager.divide(
            {"prefill": division.prefill, "decode": division.decode, "mixed": division.mixed}
        )

    def happenings(self) -> AsyncIterator[Happening]:
        return self._feed.subscribe()

    # -- what the parts need of the workers ---------------------------------------------------------------------

    def send(self, worker_id: str, message: ToWorker) -> bool:
        """False if that worker does not live (any more)."""
        member = self._members.living(worker_id)
        if member is None or member.hello is None:
            return False
        self._switchboard.send(worker_id, encode(message), is_remote=bool(member.launcher.host))
        return True

    def can_decode(self) -> bool:
        return any(m.role != "prefill" and not m.failure and not m.is_draining for m in self._members)

    def tell(
        self,
        kind: str,
        flight: Flight,
        *,
        worker_id: str = "",
        peer_id: str = "",
        num_tokens: int = 0,
        detail: str = "",
    ) -> None:
        self._feed.publish(
            kind,
            request_id=flight.request.id,
            worker_id=worker_id or flight.worker_id or "",
            peer_id=peer_id,
            num_tokens=num_tokens,
            detail=detail,
        )

    def _names_of(self, request: Request) -> list[bytes]:
        hello = next((m.hello for m in self._members if m.hello), None)
        if hello is None:
            return []
        return block_names(
            request,
            model=hello.layout.digest(),
            weight_version=self.model.weight_version,
            block_size=hello.layout.block_size,
        )

    # -- words of workers ---------------------------------------------------------------------------------------

    async def _watch_hosts(self) -> None:
        turn_s = min(1.0, self._members.silence_s / 4)
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(turn_s)
            if (
                time.monotonic() - before_s < turn_s + self._members.silence_s / 2
            ):  # else it was us who stood still
                self._hosts.look()

    def _receive(self, identity: str, data: bytes, is_remote: bool) -> None:
        if is_remote and identity.startswith(PREFIX):
            if self._may_join:
                self._hosts.hear(identity, data)
            return
        member = self._members.find(identity)
        if member is not None and bool(member.launcher.host) != is_remote:
            return  # somebody speaks in the name of a worker of another place
        self._hear(identity, decode_from_worker(data))

    def _hear(self, worker_id: str, message: FromWorker) -> None:
        member = self._members.find(worker_id)
        if member is None or member.worker_id != worker_id:
            return  # a life that is over: fenced
        # Why it could not start may come after its end; nothing else is heard then.
        if member.is_fenced and not (isinstance(message, Reply) and message.id == 0):
            return
        self._members.hear(member)
        match message:
            case Deltas() | Prefilled():
                self._router.hear(worker_id, message)
            case LeaseRenew() | LeaseRelease() | PushTarget() | Pushed():
                self._router.leases_over(self._connector.hear(worker_id, message))
            case WorkerStats() | KVEvents():
                self._monitor.hear(member, message)
            case Reply():
                self._replied(member, message)
            case Hello():
                self._welcome(member, message)

    def _replied(self, member: Member, reply: Reply) -> None:
        if reply.id == 0:  # the answer to nothing: the worker cannot start, and says why
            member.failure, member.failure_status = reply.error, reply.status
            return
        _, future = self._calls.pop(reply.id, ("", None))
        if future is None or future.done():
            return
        if reply.error is None:
            future.set_result(reply.result)
        else:
            future.set_exception(_error_of(reply.status, reply.error))

    # -- workers ------------------------------------------------------------------------------------------------

    def _config_of(self, member: Member) -> WorkerConfig:
        is_remote = bool(member.launcher.host)
        return WorkerConfig(
            worker_id=member.worker_id,
            endpoint=f"tcp://{self.joined_at}" if is_remote else self._switchboard.endpoint,
            join_token=self._join_token if is_remote else "",
            token=self._token,
            model_path=self._model_path,
            deployment=self.deployment,
            threads=self._threads,
            shm_prefix=self._shm_prefix,
            draft_model_path=self._draft_model_path,
            log_level=logging.getLevelName(log.getEffectiveLevel()),
        )

    def _welcome(self, member: Member, hello: Hello) -> None:
        member.hello, member.was_ready = hello, True
        if self._model is None:
            self._model = ModelInfo(
                name=self.deployment.served_name or Path(self.deployment.model).stem,
                max_context=hello.max_context,
                vocab_size=hello.vocab_size,
                eos_token_ids=hello.eos_token_ids,
                adapters=sorted(self.deployment.adapters),
                weight_version=hello.weight_version,
            )
        stages = ", ".join(f"{name} {spent:.1f} s" for name, spent in hello.startup_s.items())
        log.info("worker %s ready: %s", member.worker_id, stages)
        for verb, args in self._standing:
            self.send(member.worker_id, Call(id=next(self._call_ids), verb=verb, args=args))
        self._feed.publish("worker", worker_id=member.worker_id, detail="ready")
        self.decisions.hear(
            events.Joined(
                self.decisions.now(),
                member.worker_id,
                member.role,
                hello.pool.num_blocks,
                self.deployment.control.convertible,
            )
        )
        if self.decisions.has_begun:
            self._router.retry_held()

    def _forget(self, worker_id: str) -> None:
        """This life is over: nobody waits for its answers any more."""
        self._monitor.forget(worker_id)
        for call_id, (callee, future) in list(self._calls.items()):
            if callee == worker_id:
                del self._calls[call_id]
                if not future.done():
                    future.set_exception(EngineError(f"worker {worker_id} died during the call"))

    async def _setup(self) -> Setup:
        """The document's, with step times where decisions hang on them: those it gives, or those of a worker here."""
        spec = self.deployment.control
        prefill, decode = spec.prefill_times, spec.decode_times
        if needs_times(self.deployment) and (prefill is None or decode is None):
            measured = await self._measure()
            prefill, decode = prefill or measured, decode or measured
        return setup_of(self.deployment, prefill_times=prefill, decode_times=decode)

    async def _measure(self) -> WorkerTimes:
        """Step times of a worker of this cluster."""
        member = next(iter(self._members))
        assert member.hello is not None
        layout = member.hello.layout
        rows = (await self.call("measure", {}, member.worker_id))[member.worker_id]["rows"]
        times = fit_steps(
            rows,
            kv_tokens=member.hello.pool.num_blocks * layout.block_size,
            kv_token_bytes=layout.token_bytes,
            source=f"{len(rows)} steps of worker {member.worker_id}",
        )
        log.info(
            "measured: a prompt of 256 tokens %.1f ms, a step of one sequence %.1f ms, of 16 %.1f ms",
            times.prefill_s(256) * 1e3,
            times.decode_s(1, 256) * 1e3,
            times.decode_s(16, 16 * 256) * 1e3,
        )
        return times

    def _remember(self, verb: str, args: dict[str, Any]) -> None:
        """Keep the shortest list of verbs that brings a fresh worker to where the others are."""
        opposite = {"resume": "pause", "wake": "sleep", "unload_adapter": "load_adapter"}.get(verb)
        if opposite is not None:
            self._standing = [
                (v, a) for v, a in self._standing if v != opposite or a.get("name") != args.get("name")
            ]
        elif verb in ("pause", "sleep", "load_adapter", "update_weights"):
            if verb == "update_weights":
                self._standing = [(v, a) for v, a in self._standing if v != verb]
                args = args | {"version": self.model.weight_version, "in_flight": "continue"}
            self._standing.append((verb, args))

    def _refresh_model(self, answers: Iterable[dict]) -> None:
        """Keep what the edge knows of the model true after an admin verb."""
        for answer in answers:
            if "weight_version" in answer or "adapters" in answer:
                self._model = msgspec.structs.replace(
                    self.model,
                    adapters=answer.get("adapters", self.model.adapters),
                    weight_version=answer.get("weight_version", self.model.weight_version),
                )

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the cluster failed", exc_info=task.exception())


def _error_of(status: int, message: str) -> MorticeError:
    if status == 409:
        return WrongState(message)
    if status < 500:
        return RequestError(message)
    return EngineError(message)
