"""The line to a guest's agent: one JSON object a line over a pair of descriptors, owned by one event loop."""

import asyncio
import binascii
import os
import secrets
from collections.abc import Callable
from typing import Any

import msgspec

from mortice.sandbox.contract import MIB, SandboxBusy, SandboxError

MAX_LINE = 8 * MIB  # a result holds two streams of a capped size; a guest that sends more is lying
MAX_UNREAD = 4 * MIB
CHUNK = 48 * 1024
HUNG_UP_S = 1.0
Message = dict[str, Any]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode


class Channel:
    """Requests go out in order; answers come back by id. What a guest sends is bounded and checked before it is used."""

    def __init__(
        self, read_fd: int, write_fd: int, *, on_net: Callable[[Message], None] | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._read_fd, self._write_fd = read_fd, write_fd
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._in = bytearray()
        self._out = bytearray()
        self._writing = False
        self._room = asyncio.Event()
        self._room.set()
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._listeners: dict[str, Callable[[int, bytes], None]] = {}
        self._hello: asyncio.Future[Message] | None = None
        self._nonce = ""
        self.on_net = on_net
        self.closed: BaseException | None = None
        self._loop.add_reader(read_fd, self._readable)

    @property
    def num_waiting(self) -> int:
        """Requests without an answer yet."""
        return len(self._waiting)

    async def hello(self, timeout_s: float) -> Message:
        """Meet the agent: whatever lies in the pipes from before is skipped."""
        self._nonce = secrets.token_hex(8)
        self._hello = self._loop.create_future()
        self._out += b"\n"
        self._post({"op": "hello", "nonce": self._nonce})
        try:
            return await asyncio.wait_for(self._hello, timeout_s)
        except TimeoutError:
            raise SandboxError(f"the guest's agent did not answer within {timeout_s:.0f} s") from None
        finally:
            self._hello = None

    async def ask(self, message: Message, *, timeout_s: float | None = None) -> Message:
        """Send a request with an `id` and wait for its `done`, `ack` or `failed`."""
        waiter = self.expect(message["id"])
        self._post(message)
        return await self.answer(message["id"], waiter, timeout_s)

    def expect(self, name: str) -> "asyncio.Future[Message]":
        if self.closed is not None:
            raise self.closed
        if name in self._waiting:
            raise SandboxBusy(f"{name!r} is already awaited here", param="cell_id")
        waiter: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[name] = waiter
        return waiter

    async def answer(self, name: str, waiter: "asyncio.Future[Message]", timeout_s: float | None) -> Message:
        try:
            return await asyncio.wait_for(waiter, timeout_s)
        finally:
            self._waiting.pop(name, None)
            self._listeners.pop(name, None)

    def listen(self, name: str, listener: Callable[[int, bytes], None]) -> None:
        """Call `listener(1 or 2, data)` with what the run of that id writes."""
        self._listeners[name] = listener

    def post(self, message: Message) -> None:
        self._post(message)

    async def post_bytes(self, name: str, data: bytes, *, close: bool) -> None:
        """Standard input of a run, in pieces, as fast as the guest takes them."""
        for start in range(0, len(data), CHUNK):
            piece = binascii.b2a_base64(data[start : start + CHUNK], newline=False).decode()
            self._post({"op": "stdin", "id": name, "data": piece})
            await self._room.wait()
            if self.closed is not None:
                raise self.closed
        if close:
            self._post({"op": "stdin", "id": name, "eof": True})

    def fail(self, error: BaseException) -> None:
        """The machine is gone: everyone who waits learns it."""
        if self.closed is not None:
            return
        self.closed = error
        self._detach()
        for waiter in [*self._waiting.values(), *([self._hello] if self._hello else [])]:
            if not waiter.done():
                waiter.set_exception(error)
        self._room.set()

    def close(self) -> None:
        self.fail(SandboxError("the channel is closed"))
        os.close(self._read_fd)
        if self._write_fd != self._read_fd:
            os.close(self._write_fd)

    def _detach(self) -> None:
        self._loop.remove_reader(self._read_fd)
        if self._writing:
            self._loop.remove_writer(self._write_fd)
            self._writing = False

    def _post(self, message: Message) -> None:
        if self.closed is not None:
            raise self.closed
        self._out += _encode(message)
        self._out += b"\n"
        self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                sent = os.write(self._write_fd, self._out[:65536])
                del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError as error:
            self._broken(f"the channel to the guest broke: {error.strerror}")
            return
        if bool(self._out) != self._writing:
            self._writing = bool(self._out)
            if self._writing:
                self._loop.add_writer(self._write_fd, self._flush)
            else:
                self._loop.remove_writer(self._write_fd)
        if len(self._out) < MAX_UNREAD:
            self._room.set()
        else:
            self._room.clear()

    def _readable(self) -> None:
        try:
            data = os.read(self._read_fd, 262144)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(f"the channel to the guest broke: {error.strerror}")
            return
        if not data:
            self._broken("the guest's agent closed its channel")
            return
        start = len(self._in)
        self._in += data
        end = self._in.rfind(b"\n", start)
        if end < 0:
            if len(self._in) > MAX_LINE:
                self.fail(SandboxError(f"the guest sent a line of more than {MAX_LINE >> 20} MiB"))
            return
        lines = bytes(self._in[:end]).split(b"\n")
        del self._in[: end + 1]
        for line in lines:
            if line and self.closed is None:
                self._take(line)

    def _broken(self, why: str) -> None:
        """Whose machine died is told so by whoever watches it, a moment later; only a machine that lives hung up on us."""
        self._detach()
        self._out.clear()
        self._loop.call_later(HUNG_UP_S, self.fail, SandboxError(why))

    def _take(self, line: bytes) -> None:
        try:
            message = _decode(line)
        except (msgspec.DecodeError, ValueError):
            if self._hello is None:
                self.fail(SandboxError("the guest sent a line that is no message"))
            return  # what lay in the pipe before we came
        if message.get("ev") == "hello":
            if self._hello is not None and message.get("nonce") == self._nonce and not self._hello.done():
                self._hello.set_result(message)
        elif self._hello is None or self._hello.done():
            self._deliver(message, str(message.get("id")))

    def _deliver(self, message: Message, name: str) -> None:
        event = message.get("ev")
        if event == "out":
            listener = self._listeners.get(name)
            if listener is not None:
                try:
                    listener(
                        2 if message.get("s") == 2 else 1,
                        binascii.a2b_base64(str(message.get("d")), strict_mode=True),
                    )
                except binascii.Error:
                    self.fail(SandboxError("the guest sent output that cannot be read"))
        elif event == "net":
            if self.on_net is not None:
                self.on_net(message)
        elif event in ("done", "ack", "failed"):
            waiter = self._waiting.get(name)
            if waiter is None or waiter.done():
                return
            if event == "failed":
                waiter.set_exception(SandboxBusy(f"the guest refuses: {str(message.get('message'))[:500]}"))
            else:
                waiter.set_result(message)
