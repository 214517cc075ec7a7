"""The sockets between the cluster and its workers: one for this host, and, if told to listen, one for others.

Whoever hears a word is told by which of the two it came, so that no other host can speak in the name of a worker of this
one.
"""

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from mortice.specs.errors import RequestError
from mortice.transport.curve import Doorkeeper, arm_server

log = logging.getLogger(__name__)

Hear = Callable[[str, bytes, bool], None]  # identity, its words, whether it is on another host


class Switchboard:
    def __init__(self, hear: Hear) -> None:
        self._hear = hear
        self._context = zmq.asyncio.Context()
        self._local: zmq.asyncio.Socket | None = None
        self._remote: zmq.asyncio.Socket | None = None
        self._doors: AsyncioAuthenticator | None = None
        self._folder: Path | None = None
        self._tasks: set[asyncio.Task] = set()

    @property
    def endpoint(self) -> str:
        """Where workers of this host connect."""
        return f"ipc://{self._folder}/workers"

    def open(self) -> None:
        # mode 0700: only this user reaches the sockets
        self._folder = Path(tempfile.mkdtemp(prefix="mortice-"))
        self._local = self._socket()
        self._local.bind(self.endpoint)
        self._receive_from(self._local)

    def listen(self, address: str, token: str) -> str:
        """Let workers of other hosts join who know the token; answers the address with its port."""
        self._doors = AsyncioAuthenticator(self._context)
        self._doors.start()
        self._doors.configure_curve_callback(domain="*", credentials_provider=Doorkeeper(token))
        self._remote = self._socket()
        self._remote.setsockopt(
            zmq.ROUTER_HANDOVER, 1
        )  # a host that was cut off comes back on a new connection
        self._remote.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        self._remote.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5000)
        self._remote.setsockopt(zmq.MAXMSGSIZE, 64 << 20)
        arm_server(self._remote, token)
        try:
            self._remote.bind(f"tcp://{address}")
        except zmq.ZMQError as error:
            raise RequestError(
                f"cannot listen for workers on {address}: {error.strerror}", param="workers_listen"
            ) from error
        self._receive_from(self._remote)
        bound = self._remote.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        return bound.rstrip(b"\0").decode().removeprefix("tcp://")

    def send(self, identity: str, data: bytes, *, is_remote: bool = False) -> None:
        """Dropped if nobody of this name is connected. The sockets have no high-water mark, so this never waits."""
        socket = self._remote if is_remote else self._local
        if socket is not None:
            socket.send_multipart([identity.encode(), data])  # the future is done when it returns

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._doors is not None:
            self._doors.stop()
        for socket in (self._local, self._remote):
            if socket is not None:
                socket.close()
        self._context.term()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _socket(self) -> zmq.asyncio.Socket:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        return socket

    def _receive_from(self, socket: zmq.asyncio.Socket) -> None:
        task = asyncio.get_running_loop().create_task(self._receive(socket))
        self._tasks.add(task)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            identity, data = (await socket.recv_multipart())[:2]
            try:
                self._hear(identity.decode(), data, socket is self._remote)
            except Exception:
                log.exception("a message of %s could not be handled", identity)
