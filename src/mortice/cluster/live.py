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
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from mortice.cluster.api import Happening, ModelInfo, WorkerInfo
from mortice.cluster.feed import Feed
from mortice.cluster.flight import Flight
from mortice.cluster.launcher import LocalLauncher, kill, oom_kills
from mortice.cluster.member import Member
from mortice.cluster.traffic import Traffic
from mortice.engine.config import WorkerConfig
from mortice.sched.fleet import Role
from mortice.sched.prefix_map import PrefixMap, block_names
from mortice.sched.recovery import is_blamed
from mortice.sched.router import Load, Router
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
    PeerGone,
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
        counts: dict[Role, int] = {"prefill": deployment.prefill, "decode": deployment.decode}
        self._members = {
            place: Member(place, role)
            for role, count in counts.items()
            for place in (f"{role}-{i}" for i in range(count))
        }
        self._prefixes = PrefixMap(deployment.limits.block_size)
        router = Router(local_prefill_tokens=deployment.local_prefill_tokens, prefixes=self._prefixes)
        self._traffic = Traffic(router, self)
        self._launcher = LocalLauncher()
        self._token = secrets.token_hex(32)
        self._shm_prefix = f"mortice-{secrets.token_hex(4)}"
        self._call_ids = itertools.count(1)
        self._calls: dict[int, tuple[str, asyncio.Future[dict]]] = {}
        self._tasks: set[asyncio.Task] = set()
        self._standing: list[tuple[str, dict[str, Any]]] = []  # verbs that a new life of a worker must repeat
        self._feed = Feed()
        self._stopping = False
        self._num_oom_kills = oom_kills()
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
                raise _error_of(failed.failure_status, failed.failure or "")
            if time.monotonic() > deadline:
                raise EngineError(f"the workers were not ready after {STARTUP_S:.0f} s")
            await asyncio.sleep(0.02)

    async def stop(self, drain_s: float) -> None:
        self._stopping = True
        deadline = time.monotonic() + drain_s
        while self._traffic and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for flight in self._traffic.flights():
            flight.fail(Unavailable("the server is shutting down"))
        # A worker that has not said hello hears nothing yet: it gets no time to end by itself.
        processes = [(m.process, 5.0 if m.hello else 0.0) for m in self._members.values() if m.process]
        for member in self._members.values():
            if member.hello is not None:
                self.send(member.worker_id, Call(id=0, verb="shutdown"))
        await asyncio.gather(*(self._launcher.end(process, grace_s) for process, grace_s in processes))
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
        if request.id in self._traffic:
            raise RequestError(f"request id {request.id!r} is in use", param="request_id")
        heard: asyncio.Queue[Delta | MorticeError] = asyncio.Queue()
        flight = Flight(request, self._names_of(request), heard.put_nowait)
        try:
            self._traffic.open(flight)
            while not (flight.is_over and heard.empty()):
                item = await heard.get()
                if isinstance(item, MorticeError):
                    raise item
                yield item
        finally:
            self._traffic.close(flight)

    def end_sequence(self, request_id: str, index: int) -> None:
        self._traffic.end_sequence(request_id, index)

    def num_in_flight(self) -> int:
        return len(self._traffic)

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

    def happenings(self) -> AsyncIterator[Happening]:
        return self._feed.subscribe()

    # -- what traffic needs of the workers (cluster/traffic.py, Crew) ---------------------------------------------

    def send(self, worker_id: str, message: ToWorker) -> bool:
        """False if that worker does not live (any more)."""
        member = self._members.get(worker_id.rpartition(".")[0])
        if member is None or member.worker_id != worker_id or member.hello is None or self._socket is None:
            return False
        # The socket has no high-water mark, so this never waits; the future is done when it returns.
        self._socket.send_multipart([worker_id.encode(), encode(message)])
        return True

    def loads(self, assigned: dict[str, int], prompt_tokens: dict[str, int]) -> list[Load]:
        return [
            m.load(assigned.get(m.worker_id, 0), prompt_tokens.get(m.worker_id, 0))
            for m in self._members.values()
            if m.is_ready
        ]

    def can_decode(self) -> bool:
        return any(m.role == "decode" and not m.failure for m in self._members.values())

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
        # Why it could not start may come after its end; nothing else is heard then.
        if member.is_buried and not isinstance(message, Reply):
            return
        member.hear()
        match message:
            case Deltas() | Prefilled() | LeaseRenew() | LeaseRelease() | PushTarget() | Pushed():
                self._traffic.hear(worker_id, message)
            case WorkerStats():
                member.stats = message
            case KVEvents():
                self._prefixes.update(worker_id, message.stored, message.removed)
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

    async def _launch(self, member: Member) -> None:
        assert self._folder is not None
        member.life += 1
        member.hello = member.stats = None
        member.is_buried = member.is_silenced = False
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
        num_oom_kills = oom_kills()
        ran_out_of_memory, self._num_oom_kills = num_oom_kills > self._num_oom_kills, num_oom_kills
        self._bury(
            member,
            blamed=is_blamed(code, was_silenced=member.is_silenced, ran_out_of_memory=ran_out_of_memory),
        )
        if member.failure is not None:
            return  # it said why it cannot start; trying again would change nothing
        delay_s = member.restarts.died(became_ready=was_ready, lived_s=lived_s)
        if delay_s is None:
            member.failure = f"worker {member.place} could not be kept alive"
            log.error("%s", member.failure)
            self._traffic.retry_pending()
            return
        await asyncio.sleep(delay_s)
        if not self._stopping:
            await self._launch(member)

    def _bury(self, member: Member, *, blamed: bool) -> None:
        """The worker is gone: its calls fail, its prefixes are forgotten, its requests go elsewhere."""
        worker_id, hello = member.worker_id, member.hello
        member.hello, member.is_buried = None, True
        self._prefixes.drop(worker_id)
        sweep(
            self._shm_prefix, [m.process.pid for m in self._members.values() if m.process and m is not member]
        )
        if hello is not None:
            for other in self._members.values():
                self.send(other.worker_id, PeerGone(hello.pool.pool_id))
        for call_id, (callee, future) in list(self._calls.items()):
            if callee == worker_id:
                del self._calls[call_id]
                if not future.done():
                    future.set_exception(EngineError(f"worker {worker_id} died during the call"))
        self._traffic.worker_died(worker_id, blamed=blamed)

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
            self.send(member.worker_id, Call(id=next(self._call_ids), verb=verb, args=args))
        self._feed.publish("worker", worker_id=member.worker_id, detail="ready")
        self._traffic.retry_pending()

    async def _watch_silence(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for member in self._members.values():
                if member.hello and member.process and now - max(member.heard_s, member.ready_s) > SILENCE_S:
                    log.error("worker %s has been silent for %.0f s: killing it", member.worker_id, SILENCE_S)
                    member.is_silenced = True
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

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _error_of(status: int, message: str) -> MorticeError:
    if status == 409:
        return WrongState(message)
    if status < 500:
        return RequestError(message)
    return EngineError(message)
