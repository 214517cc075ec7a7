"""Other hosts that joined: each is a launcher whose processes are started by the agent over there (host_agent.py)."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, get_args

import msgspec

from mortice import __version__
from mortice.cluster.host_words import (
    FromHost,
    HostAlive,
    JoinHost,
    KillWorker,
    LaunchWorker,
    LeaveHost,
    Refusal,
    Rejoin,
    ToHost,
    Welcome,
    WorkerEnded,
    decode_from_host,
    encode,
)
from mortice.engine.config import WorkerConfig
from mortice.sched.fleet import Role
from mortice.specs.errors import Unavailable

log = logging.getLogger(__name__)

KILLED = -9
MAX_WORKERS = 64  # of one host


class HostBody:
    """A worker on another host. Killed, it counts as gone at once: nobody can wait for a host that was cut off."""

    pid = 0  # its `Hello` says it

    def __init__(self, worker_id: str, host: "Host") -> None:
        self._worker_id = worker_id
        self._host = host
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        self._host.say(KillWorker(self._worker_id))
        self.end(KILLED)

    def end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)


class Host:
    """Implements `Launcher` over one joining of one host."""

    def __init__(self, identity: str, name: str, max_workers: int, say: Callable[[str, bytes], None]) -> None:
        self.identity = identity
        self.host = name
        self.max_workers = max_workers
        self.is_alive = True
        self.heard_s = time.monotonic()
        self._say = say
        self._bodies: dict[str, HostBody] = {}

    def say(self, word: ToHost) -> None:
        self._say(self.identity, encode(word))

    async def start(self, config: WorkerConfig) -> HostBody:
        if not self.is_alive:
            raise Unavailable(f"host {self.host} is gone")
        body = HostBody(config.worker_id, self)
        self._bodies[config.worker_id] = body
        # Its agent knows the way here, the token, and where the model lies over there.
        own = msgspec.structs.replace(
            config, endpoint="", join_token="", model_path="", draft_model_path=None
        )
        self.say(LaunchWorker(own))
        return body

    def ended(self, worker_id: str, code: int) -> None:
        body = self._bodies.pop(worker_id, None)
        if body is not None:
            body.end(code)

    def lose(self) -> None:
        """It is given up, and with it all that runs there."""
        self.is_alive = False
        for worker_id in list(self._bodies):
            self.ended(worker_id, KILLED)

    async def close(self) -> None:
        self.lose()


class Hosts:
    """`order` starts a worker through a launcher; `room` says how many more the cluster may have."""

    def __init__(
        self,
        *,
        say: Callable[[str, bytes], None],
        order: Callable[[Role, Host], Coroutine[Any, Any, object]],
        room: Callable[[], int],
        silence_s: float,
    ) -> None:
        self._say, self._order, self._room = say, order, room
        self._silence_s = silence_s
        self._hosts: dict[str, Host] = {}
        self._tasks: set[asyncio.Task] = set()

    def launchers(self) -> list[Host]:
        return list(self._hosts.values())

    def hear(self, identity: str, data: bytes) -> None:
        word: FromHost = decode_from_host(data)
        host = self._hosts.get(identity)
        if host is not None:
            host.heard_s = time.monotonic()
        if host is None:
            if isinstance(word, JoinHost):
                self._join(identity, word)
            elif not isinstance(word, LeaveHost):
                self._say(identity, encode(Rejoin()))
            return
        match word:
            case JoinHost():
                host.say(Welcome(self._silence_s))  # it did not hear the first
            case LeaveHost():
                self._lose(host, "left")
            case HostAlive():
                host.say(word)
            case WorkerEnded(worker_id, code):
                host.ended(worker_id, code)

    def look(self) -> None:
        """Give up hosts that were silent for too long; to be called now and then."""
        now = time.monotonic()
        for host in list(self._hosts.values()):
            if now - host.heard_s > self._silence_s:
                self._lose(host, f"has been silent for {self._silence_s:g} s: given up")

    async def close(self) -> None:
        for host in self._hosts.values():
            host.say(Rejoin())
            await host.close()

    def _lose(self, host: Host, why: str) -> None:
        log.warning("host %s %s", host.host, why)
        del self._hosts[host.identity]
        host.lose()

    def _join(self, identity: str, word: JoinHost) -> None:
        reason = ""
        if word.version != __version__:
            reason = f"this cluster runs version {__version__}, you have {word.version}"
        elif word.role not in get_args(Role) or not 1 <= word.num_workers <= MAX_WORKERS:
            reason = f"{word.num_workers} workers as {word.role!r} make no sense"
        elif not word.num_workers <= word.max_workers <= MAX_WORKERS:
            reason = f"a host of at most {word.max_workers} workers cannot bring {word.num_workers}"
        elif word.num_workers > self._room():
            reason = f"the cluster has room for {self._room()} more workers, not for {word.num_workers}"
        if reason:
            self._say(identity, encode(Refusal(reason)))
            return
        host = Host(identity, word.host[:64] or "host", word.max_workers, self._say)
        self._hosts[identity] = host
        host.say(Welcome(self._silence_s))
        log.info("host %s joined with %d workers", host.host, word.num_workers)
        for _ in range(word.num_workers):
            task = asyncio.get_running_loop().create_task(self._order(word.role, host))  # type: ignore[arg-type]
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
