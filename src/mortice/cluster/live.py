"""The live cluster: carries requests between the edge and worker processes, through their deaths.

All of it runs on one event loop. Decisions (where a request goes, whether a dead worker is replaced) are `sched`'s; here
they are carried out.
"""

import asyncio
import itertools
import logging
import secrets
import shutil
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from mortice.cluster.api import Happening, ModelInfo, WorkerInfo
from mortice.cluster.feed import Feed
from mortice.cluster.flight import Flight
from mortice.cluster.launcher import LocalLauncher, kill
from mortice.cluster.member import Member
from mortice.engine.config import WorkerConfig
from mortice.sched.prefix_map import PrefixMap, block_names
from mortice.sched.recovery import should_retry
from mortice.sched.router import Load, Route, Router
from mortice.specs.deployment import Deployment
from mortice.specs.errors import EngineError, MorticeError, RequestError, Unavailable, WrongState
from mortice.specs.messages import (
    Abort,
    Call,
    Deltas,
    FromWorker,
    Hello,
    KVEvents,
    LeaseRelease,
    LeaseRenew,
    PeerGone,
    Prefilled,
    Pushed,
    PushTarget,
    Reply,
    Submit,
    ToWorker,
    WorkerStats,
    decode_from_worker,
    encode,
)
from mortice.specs.request import Delta, Request
from mortice.transport.segment import sweep

log = logging.getLogger(__name__)

SILENCE_S = 60.0  # a worker that says nothing for so long is taken for dead
STARTUP_S = 300.0
CALL_S = 120.0


class LiveCluster:
    """Implements `cluster.api.Cluster` on processes of this host."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        model_path: str,
        draft_model_path: str | None,
        threads: int,
    ) -> None:
        self.deployment = deployment
        self._model_path, self._draft_model_path = model_path, draft_model_path
        self._threads = threads
        self._members = {
            place: Member(place, role)
            for role, count in (("prefill", deployment.prefill), ("decode", deployment.decode))
            for place in (f"{role}-{i}" for i in range(count))
        }
        self._flights: dict[str, Flight] = {}
        self._pending: deque[Flight] = deque()  # no worker could take them yet
        self._prefixes = PrefixMap(deployment.limits.block_size)
        self._router = Router(local_prefill_tokens=deployment.local_prefill_tokens, prefixes=self._prefixes)
        self._launcher = LocalLauncher()
        self._token = secrets.token_hex(32)
        self._shm_prefix = f"mortice-{secrets.token_hex(4)}"
        self._call_ids = itertools.count(1)
        self._calls: dict[int, tuple[str, asyncio.Future[dict]]] = {}
        self._tasks: set[asyncio.Task] = set()
        self._standing: list[tuple[str, dict[str, Any]]] = []  # verbs that a new life of a worker must repeat
        self._feed = Feed()
        self._stopping = False
        self._model: ModelInfo | None = None
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._folder: Path | None = None

    # -- the contract of cluster/api.py -----------------------------------------------------------------------

    @property
    def model(self) -> ModelInfo:
        assert self._model is not None, "the cluster has not started"
        return self._model

    async def start(self) -> None:
        self._folder = Path(
            tempfile.mkdtemp(prefix="mortice-")
        )  # mode 0700: only this user reaches the sockets
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(f"ipc://{self._folder}/workers")
        self._spawn(self._receive())
        self._spawn(self._watch_silence())
        for member in self._members.values():
            await self._launch(member)
        deadline = time.monotonic() + STARTUP_S
        while not all(member.hello for member in self._members.values()):
            failed = next((m for m in self._members.values() if m.failure), None)
            if failed is not None:
                error = _error_of(failed.failure_status, failed.failure or "")
                error.param = "model"
                raise error
            if time.monotonic() > deadline:
                raise EngineError(f"the workers were not ready after {STARTUP_S:.0f} s")
            await asyncio.sleep(0.02)

    async def stop(self, drain_s: float) -> None:
        self._stopping = True
        deadline = time.monotonic() + drain_s
        while self._flights and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for flight in list(self._flights.values()):
            flight.fail(Unavailable("the server is shutting down"))
        processes = [m.process for m in self._members.values() if m.process is not None]
        for member in self._members.values():
            if member.hello is not None:
                self._send(member.worker_id, Call(id=0, verb="shutdown"))
        await asyncio.gather(*(self._launcher.end(process, 5.0) for process in processes))
        sweep(self._shm_prefix, ())
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        self._context.term()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

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
        if any(m.state == "asleep" for m in self._members.values()):
            raise WrongState("the engine is asleep; wake it first")
        if request.id in self._flights:
            raise RequestError(f"request id {request.id!r} is in use", param="request_id")
        flight = Flight(request, self._names_of(request))
        self._flights[request.id] = flight
        self._tell("queued", flight, num_tokens=len(request.prompt_token_ids))
        try:
            self._dispatch(flight)
            while not (flight.is_over and flight.queue.empty()):
                item = await flight.queue.get()
                if isinstance(item, MorticeError):
                    raise item
                yield item
        finally:
            self._close(flight)

    def num_in_flight(self) -> int:
        return len(self._flights)

    def ready(self) -> bool:
        return not self._stopping and any(m.is_ready and m.role == "decode" for m in self._members.values())

    def workers(self) -> list[WorkerInfo]:
        return [member.info() for member in self._members.values()]

    async def call(self, verb: str, args: dict[str, Any], worker_id: str | None = None) -> dict[str, dict]:
        targets = [m for m in self._members.values() if m.hello and worker_id in (None, m.worker_id, m.place)]
        if not targets:
            raise RequestError(f"no live worker {worker_id!r}", param="worker_id")
        futures = {}
        for member in targets:
            call_id = next(self._call_ids)
            future: asyncio.Future[dict] = asyncio.get_running_loop().create_future()
            self._calls[call_id] = (member.worker_id, future)
            futures[member.worker_id] = future
            self._send(member.worker_id, Call(id=call_id, verb=verb, args=args))
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

    def happenings(self) -> AsyncIterator[Happening]:
        return self._feed.subscribe()

    # -- requests -----------------------------------------------------------------------------------------------

    def _dispatch(self, flight: Flight) -> None:
        """Give a flight to the worker that the router picks, or let it wait for one."""
        flight.worker_id, flight.stage, flight.descriptor = None, "pending", None
        loads = self._loads()
        resumed = flight.resumed
        if resumed:  # it was decoding: whoever goes on computes what was lost
            chosen = self._router.choose_decode(flight.names, loads)
            route = None if chosen is None else Route(None, chosen.worker_id, "recovery")
        else:
            route = self._router.route(len(flight.request.prompt_token_ids), flight.names, loads)
        if route is None:
            if not any(m.role == "decode" and not m.failure for m in self._members.values()):
                flight.fail(Unavailable("no decode worker is left"))
            else:
                self._pending.append(flight)
            return
        flight.worker_id = route.prefill or route.decode
        flight.stage = "prefill" if route.prefill else "decode"
        self._tell("route", flight, detail=route.reason)
        self._send(
            flight.worker_id,
            Submit(request=flight.request, prefill_only=route.prefill is not None, resumed=resumed),
        )

    def _prefilled(self, worker_id: str, message: Prefilled) -> None:
        flight = self._flights.get(message.request_id)
        if flight is None or flight.worker_id != worker_id:
            if message.descriptor is not None:
                self._send(worker_id, LeaseRelease([message.descriptor.lease_id]))
            return
        flight.prefill_end_s = time.time()
        for delta in message.first:
            flight.take(delta)
        self._tell("prefill", flight, num_tokens=len(flight.request.prompt_token_ids))
        if message.descriptor is None:
            return
        chosen = self._router.choose_decode(flight.names, self._loads())
        if chosen is None:
            self._send(worker_id, LeaseRelease([message.descriptor.lease_id]))
            self._dispatch(flight)
            return
        flight.worker_id, flight.stage, flight.descriptor = chosen.worker_id, "decode", message.descriptor
        self._tell(
            "handoff",
            flight,
            worker_id=worker_id,
            peer_id=chosen.worker_id,
            num_tokens=message.descriptor.num_tokens,
        )
        self._send(
            chosen.worker_id,
            Submit(request=flight.request, resumed=flight.resumed, handoff=message.descriptor),
        )

    def _deltas(self, worker_id: str, deltas: list[Delta]) -> None:
        for delta in deltas:
            flight = self._flights.get(delta.request_id)
            if flight is None or flight.worker_id != worker_id or delta.index in flight.finished:
                continue
            flight.take(delta)

    def _close(self, flight: Flight) -> None:
        """The flight is over, by its end or because nobody listens any more: nothing of it may stay anywhere."""
        self._flights.pop(flight.request.id, None)
        if flight in self._pending:
            self._pending.remove(flight)
        if flight.is_over:
            self._tell("finish", flight, num_tokens=sum(map(len, flight.given)))
        else:
            self._tell("abort", flight)
        if flight.worker_id is not None and not flight.is_over:
            self._send(flight.worker_id, Abort([flight.request.id]))
        self._end_lease(flight)

    def _end_lease(self, flight: Flight) -> None:
        if flight.descriptor is not None:
            lease_id = flight.descriptor.lease_id
            self._send(_owner_of(lease_id), LeaseRelease([lease_id]))
            flight.descriptor = None

    def _retry_pending(self) -> None:
        waiting, self._pending = self._pending, deque()
        for flight in waiting:
            self._dispatch(flight)

    def _loads(self) -> list[Load]:
        count: dict[str, int] = {}
        tokens: dict[str, int] = {}
        for flight in self._flights.values():
            if flight.worker_id is not None:
                count[flight.worker_id] = count.get(flight.worker_id, 0) + 1
                if flight.stage == "prefill":
                    prompt = len(flight.request.prompt_token_ids)
                    tokens[flight.worker_id] = tokens.get(flight.worker_id, 0) + prompt
        return [
            m.load(count.get(m.worker_id, 0), tokens.get(m.worker_id, 0))
            for m in self._members.values()
            if m.is_ready
        ]

    def _names_of(self, request: Request) -> list[bytes]:
        hello = next((m.hello for m in self._members.values() if m.hello), None)
        if hello is None:
            return []
        return block_names(
            request,
            model=hello.layout.digest(),
            weight_version=self.model.weight_version,
            block_size=hello.layout.block_size,
        )

    # -- words between workers ----------------------------------------------------------------------------------

    async def _receive(self) -> None:
        assert self._socket is not None
        while True:
            identity, data = await self._socket.recv_multipart()
            try:
                self._hear(identity.decode(), decode_from_worker(data))
            except Exception:
                log.exception("a message of worker %s could not be handled", identity)

    def _hear(self, worker_id: str, message: FromWorker) -> None:
        member = self._members.get(worker_id.rpartition(".")[0])
        if member is None or member.worker_id != worker_id:
            return  # a life that is over: fenced
        member.hear()
        match message:
            case Deltas(deltas):
                self._deltas(worker_id, deltas)
            case Prefilled():
                self._prefilled(worker_id, message)
            case WorkerStats():
                member.stats = message
            case KVEvents():
                self._prefixes.update(worker_id, message.stored, message.removed)
            case LeaseRenew(lease_ids) | LeaseRelease(lease_ids):
                self._forward_lease_word(message, lease_ids)
            case PushTarget():
                if not self._send(_owner_of(message.lease_id), message):
                    lost = Pushed(
                        lease_id=message.lease_id,
                        target_lease_id=message.target.lease_id,
                        error="the owner is gone",
                    )
                    self._send(worker_id, lost)
            case Pushed():
                self._send(message.target_lease_id.rpartition(">")[2], message)
            case Reply():
                self._replied(member, message)
            case Hello():
                self._welcome(member, message)

    def _forward_lease_word(self, message: LeaseRenew | LeaseRelease, lease_ids: list[str]) -> None:
        by_owner: dict[str, list[str]] = {}
        for lease_id in lease_ids:
            by_owner.setdefault(_owner_of(lease_id), []).append(lease_id)
        for owner, ids in by_owner.items():
            self._send(owner, type(message)(ids))
        if isinstance(message, LeaseRelease):
            over = set(lease_ids)
            for flight in self._flights.values():
                if flight.descriptor is not None and flight.descriptor.lease_id in over:
                    flight.descriptor = None
                    self._tell("decode", flight)

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

    def _send(self, worker_id: str, message: ToWorker) -> bool:
        """False if that worker does not live (any more)."""
        member = self._members.get(worker_id.rpartition(".")[0])
        if member is None or member.worker_id != worker_id or member.hello is None or self._socket is None:
            return False
        # The socket has no high-water mark, so this never waits; the future is done when it returns.
        self._socket.send_multipart([worker_id.encode(), encode(message)])
        return True

    # -- workers ------------------------------------------------------------------------------------------------

    async def _launch(self, member: Member) -> None:
        assert self._folder is not None
        member.life += 1
        member.hello = member.stats = None
        member.started_s = time.monotonic()
        config = WorkerConfig(
            worker_id=member.worker_id,
            endpoint=f"ipc://{self._folder}/workers",
            token=self._token,
            model_path=self._model_path,
            deployment=self.deployment,
            threads=self._threads,
            shm_prefix=self._shm_prefix,
            draft_model_path=self._draft_model_path,
            log_level=logging.getLevelName(log.getEffectiveLevel()),
        )
        member.process = await self._launcher.start(config)
        self._spawn(self._watch(member, member.process))

    async def _watch(self, member: Member, process: asyncio.subprocess.Process) -> None:
        """Wait for the end of one life; clear up after it, and start the next."""
        code = await process.wait()
        if self._stopping:
            return
        worker_id, was_ready = member.worker_id, member.hello is not None
        lived_s = time.monotonic() - member.started_s
        log.warning("worker %s ended with code %s after %.1f s", worker_id, code, lived_s)
        self._feed.publish("worker", worker_id=worker_id, detail=f"ended with code {code}")
        self._bury(member)
        if member.failure is not None:
            return  # it said why it cannot start; trying again would change nothing
        delay_s = member.restarts.died(became_ready=was_ready, lived_s=lived_s)
        if delay_s is None:
            member.failure = f"worker {member.place} could not be kept alive"
            log.error("%s", member.failure)
            self._retry_pending()
            return
        await asyncio.sleep(delay_s)
        if not self._stopping:
            await self._launch(member)

    def _bury(self, member: Member) -> None:
        """The worker is gone: its calls fail, its prefixes are forgotten, its requests go elsewhere."""
        worker_id, hello = member.worker_id, member.hello
        member.hello = None
        self._prefixes.drop(worker_id)
        sweep(
            self._shm_prefix, [m.process.pid for m in self._members.values() if m.process and m is not member]
        )
        if hello is not None:
            for other in self._members.values():
                self._send(other.worker_id, PeerGone(hello.pool.pool_id))
        for call_id, (callee, future) in list(self._calls.items()):
            if callee == worker_id:
                del self._calls[call_id]
                if not future.done():
                    future.set_exception(EngineError(f"worker {worker_id} died during the call"))
        for flight in list(self._flights.values()):
            if flight.descriptor is not None and _owner_of(flight.descriptor.lease_id) == worker_id:
                lost = Pushed(
                    lease_id=flight.descriptor.lease_id,
                    target_lease_id=f"{flight.descriptor.lease_id}>{flight.worker_id}",
                    error="the owner died",
                )
                if self.deployment.transfer.mode == "push" and flight.worker_id is not None:
                    self._send(flight.worker_id, lost)
                flight.descriptor = None
            if flight.worker_id == worker_id and not flight.is_over:
                self._end_lease(flight)
                flight.num_attempts += 1
                if should_retry(flight.num_attempts):
                    self._dispatch(flight)
                else:
                    flight.fail(EngineError(f"{flight.num_attempts} workers died under this request"))

    def _welcome(self, member: Member, hello: Hello) -> None:
        member.hello = hello
        member.ready_s = time.monotonic()
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
            self._send(member.worker_id, Call(id=next(self._call_ids), verb=verb, args=args))
        self._feed.publish("worker", worker_id=member.worker_id, detail="ready")
        self._retry_pending()

    async def _watch_silence(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for member in self._members.values():
                if member.hello and member.process and now - max(member.heard_s, member.ready_s) > SILENCE_S:
                    log.error("worker %s has been silent for %.0f s: killing it", member.worker_id, SILENCE_S)
                    kill(member.process)

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

    def _tell(
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

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _owner_of(lease_id: str) -> str:
    return lease_id.partition("/")[0]


def _error_of(status: int, message: str) -> MorticeError:
    if status == 409:
        return WrongState(message)
    if status < 500:
        return RequestError(message)
    return EngineError(message)
