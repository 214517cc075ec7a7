"""One HTTP exchange over raw ASGI: the body comes in under limits, the answer goes out, a hang-up ends the
work.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from mortice.serve.errors import Headers, HttpError, error_body, error_headers, error_status
from mortice.serve.json_text import as_json

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = [(b"content-type", b"application/json")]
SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


DISCARD_BYTES = 16 << 20
DISCARD_S = 2.0


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


class Link:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.request_id = request_id
        self.status = 0  # of the answer, 0 while none was begun
        self.complete = False  # the last byte was handed over: what follows is no hang-up
        self.sending_since = 0.0  # time.monotonic() when the send in progress began; 0.0: none is
        self.last_sent = time.monotonic()
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> str | None:
        """First header of that name (lower case), Latin-1."""
        for key, value in self.scope["headers"]:
            if key == name:
                return bytes(value).decode("latin-1")
        return None

    async def read(self, max_bytes: int, timeout_s: float, take: Callable[[int], None]) -> bytes:
        """The whole body. Raises 413 past `max_bytes`, 408 when it is not there in time, ClientGone on a
        hang-up. `take` is told of every part, and may raise.
        """
        length = self.header(b"content-length")
        try:
            async with asyncio.timeout(timeout_s):
                if length is not None and length.isdigit() and int(length) > max_bytes:
                    await self._discard()
                    raise _too_large(max_bytes)
                return await self._read(max_bytes, take)
        except TimeoutError as error:
            message = f"the body did not arrive within {timeout_s:g} s"
            raise HttpError(408, "timeout_error", message, code="request_timeout") from error

    async def _read(self, max_bytes: int, take: Callable[[int], None]) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            more = message.get("more_body", False)
            if size > max_bytes:
                if more:
                    await self._discard()
                raise _too_large(max_bytes)
            take(len(part))
            parts.append(part)
            if not more:
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _discard(self) -> None:
        """Take some of a body that is too large: a client that still sends would see a reset and not our
        answer.
        """
        if self.header(b"expect") is not None:  # it asked first, and has not begun to send
            return
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while size < DISCARD_BYTES:
                    message = await self._receive()
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    async def until_gone(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`; if the client hangs up first, cancel it in the same turn of the loop and raise
        ClientGone.

        To be called when the body has been read: from then on all that can be received is the hang-up.
        """
        task = asyncio.ensure_future(work)
        watcher = asyncio.ensure_future(self._gone())
        watcher.add_done_callback(lambda _: self.complete or task.cancel())
        try:
            await task
        except asyncio.CancelledError:
            if watcher.done() and not watcher.cancelled():
                raise ClientGone from None
            task.cancel()
            raise
        finally:
            watcher.cancel()

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Headers) -> None:
        self.status = status
        extra = (b"x-request-id", self.request_id.encode())
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, extra]})

    async def body(self, data: bytes, more: bool) -> None:
        self.sending_since = time.monotonic()
        self.complete = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self.last_sent = time.monotonic()
        self.sending_since = 0.0

    async def answer(self, data: bytes, status: int = 200, headers: Headers = JSON) -> None:
        """A whole answer at once."""
        await self.start(status, [*headers, (b"content-length", str(len(data)).encode())])
        await self.body(data, more=False)

    async def json(self, value: Any, status: int = 200, headers: Headers = JSON) -> None:
        await self.answer(as_json(value), status, headers)

    async def fail(self, error: BaseException) -> None:
        """The error as a whole answer. To be called only before the first byte."""
        await self.json(error_body(error), error_status(error), [*JSON, *error_headers(error)])


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(
        413, "invalid_request_error", f"the body is larger than {max_bytes} bytes", code="request_too_large"
    )
