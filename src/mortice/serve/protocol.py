"""uvicorn's HTTP protocol, with the bounds on a connection that it lacks."""

import asyncio
import resource
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mortice.serve.errors import ErrorBody, ErrorDetail
from mortice.serve.json_text import as_json
from mortice.serve.options import ServeOptions

OWN_FILES = 256  # descriptors that are no client's: sockets of workers, the store, files
_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


def connection_limit(wanted: int) -> int:
    """Raise this process's limit on open files for so many connections; returns how many there is room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted + OWN_FILES:
        soft = wanted + OWN_FILES if hard == unlimited else min(hard, wanted + OWN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == unlimited else max(1, min(wanted, soft - OWN_FILES))


def bounded_protocol(options: ServeOptions) -> type[HttpToolsProtocol]:
    """The protocol class for one server; uvicorn makes an instance a connection."""
    most = connection_limit(options.admission.max_connections)
    return type("Protocol", (_BoundedProtocol,), {"options": options, "max_connections": most})


class _BoundedProtocol(HttpToolsProtocol):
    """One connection.

    - A request's head must be complete `header_timeout_s` after its connection or its first byte (408). The body has a
      limit of its own, in link.py.
    - Head, chunk framing and trailers are parsed into memory: past `max_head_bytes` comes 431.
    - One connection more than `max_connections` gets 503.
    - A client that takes no byte for `stall_s` is cut off by the kernel, whatever is left to send it and whoever
      waits for that: the application, or a connection that is already closing.
    - Requests are not pipelined: what comes before the answer is complete is thrown away and the connection closed
      after it, for a queue of requests hides that its client is gone.
    """

    options: ServeOptions
    max_connections: int
    _head_timer: asyncio.TimerHandle | None = None
    _num_head_bytes = 0  # received, and neither a body nor a request that is complete
    _is_deaf = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.options.stall_s * 1000))
        if len(self.connections) > self.max_connections:
            self._refuse(503, "server_error", "there are too many connections", "too_many_connections")
        else:
            self._arm()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._head_timer is None:
            self._arm()
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._num_head_bytes > (limit := self.options.admission.max_head_bytes):
            message = f"headers, chunk headers and trailers are larger than {limit} bytes"
            self._refuse(431, "invalid_request_error", message, "headers_too_large")

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._is_deaf = True
            self.cycle.keep_alive = False
        if not self._is_deaf:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_deaf:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_deaf:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._is_deaf:
            self._disarm()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_head_bytes -= len(body)
        if not self._is_deaf:
            super().on_body(body)

    def on_chunk_complete(self) -> None:
        self._num_head_bytes = 0

    def on_message_complete(self) -> None:
        self._num_head_bytes = 0
        if not self._is_deaf:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "invalid_request_error", "this is not HTTP as we know it", "invalid_http")

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(self.options.admission.header_timeout_s, self._late)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        message = (
            f"the head of the request did not arrive within {self.options.admission.header_timeout_s:g} s"
        )
        self._refuse(408, "timeout_error", message, "request_timeout")

    def _refuse(self, status: int, kind: str, message: str, code: str) -> None:
        """Answer, where an answer has not begun, and close."""
        self._is_deaf = True
        self._disarm()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = as_json(ErrorBody(ErrorDetail(message, kind, None, code)))
            head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            retry = b"retry-after: 1\r\n" if status == 503 else b""
            self.transport.write(
                head % (status, _REASONS[status], len(body)) + retry + b"connection: close\r\n\r\n" + body
            )
        self.transport.close()
