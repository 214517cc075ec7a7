"""The only way out of a sandbox: a proxy on the host that knows names, rules and budgets.

The guest has no route and no name server. Its agent carries connections to a listener of its own loopback here; this side
speaks HTTP: CONNECT, and plain requests with an absolute address. A name is looked up only if a rule allows it, every
address it has is checked, and the one that was checked is the one connected to. A denial is an answer that a program and a
model can read, never silence.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mortice.sandbox.channel import CHUNK, Channel, Message
from mortice.sandbox.contract import Egress
from mortice.sandbox.egress_rules import Denied, Rules, check_addresses
from mortice.sandbox.egress_tls import Authority, Stream, TlsEnd
from mortice.sandbox.secrets import Keyring, ReadValue

MAX_HEAD = 64 * 1024
WINDOW = 256 * 1024
CONNECT_TIMEOUT_S = 15.0
HEAD_TIMEOUT_S = 15.0
IDLE_TIMEOUT_S = 120.0
_COMPRESSED = re.compile(rb"\r\ncontent-encoding:(?!\s*identity\s*(\r|$))", re.IGNORECASE)
Resolve = Callable[[str, int], Awaitable[list[str]]]
CheckAddresses = Callable[[str, list[str]], str]


async def resolve(name: str, port: int) -> list[str]:
    """Every address of a name, from the host's own resolver."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed where TLS of guests ends: who makes certificates for them, and how real hosts are checked."""

    authority: Callable[[], Authority]
    upstream: ssl.SSLContext


class Gate:
    """The host's end of one sandbox's way out. `record` writes to the box's chain."""

    def __init__(
        self,
        egress: Egress,
        record: Callable[..., None],
        *,
        resolve: Resolve = resolve,
        check_addresses: CheckAddresses = check_addresses,
        read_secret: ReadValue = os.environ.get,
        tls: Tls | None = None,
    ) -> None:
        self._rules = Rules(egress)
        self._keyring = Keyring(egress, read_secret)
        self._tls = tls
        self._egress = egress
        self._record = record
        self._resolve = resolve
        self._check_addresses = check_addresses
        self._channel: Channel | None = None
        self._flows: dict[int, _Flow] = {}
        self._spent = 0
        self._requests: deque[float] = deque()

    def attach(self, channel: Channel) -> None:
        """A new line to the guest; connections of the old one are gone."""
        self._channel = channel

    def take(self, message: Message) -> None:
        """A message of the guest's end. Nothing in it is trusted."""
        number, kind = message.get("c"), message.get("k")
        if not isinstance(number, int):
            return
        flow = self._flows.get(number)
        if kind == "open" and flow is None:
            if len(self._flows) >= 4 * self._egress.max_connections:
                self.send(number, "close")
                return
            self._flows[number] = flow = _Flow(self, number)
            flow.task = asyncio.ensure_future(self._serve(flow))
        elif flow is not None and kind == "data":
            try:
                flow.feed(base64.b64decode(str(message.get("d")), validate=True))
            except ValueError:
                flow.task.cancel()
        elif flow is not None and kind == "room":
            count = message.get("n")
            flow.give_room(count if isinstance(count, int) and 0 < count <= WINDOW else 0)
        elif flow is not None and kind in ("eof", "close"):
            flow.feed(b"")
            if kind == "close":
                flow.task.cancel()

    def send(self, number: int, kind: str, **more: Any) -> None:
        if self._channel is not None and self._channel.closed is None:
            self._channel.post({"op": "net", "c": number, "k": kind, **more})

    def spend(self, count: int) -> None:
        self._spent += count
        if self._spent > self._egress.max_bytes:
            raise Denied(
                "byte_budget", f"more than {self._egress.max_bytes} bytes went in and out of this sandbox"
            )

    async def close(self) -> None:
        for flow in list(self._flows.values()):
            flow.task.cancel()
        await asyncio.gather(*(f.task for f in self._flows.values()), return_exceptions=True)

    async def _serve(self, flow: "_Flow") -> None:
        began = time.monotonic()
        call = _Call(flow)
        target, verdict = "", "closed"
        try:
            head, rest = await asyncio.wait_for(_read_head(flow), HEAD_TIMEOUT_S)
            method, host, port, first = _understand(head)
            target = f"{host}:{port}"
            self._admit()
            name = self._rules.check_name(host, port)
            address = self._check_addresses(name, await self._resolve(name, port))
            if self._keyring.of(name, port):
                await self._with_secrets(call, method, name, port, address, rest)
            else:
                self._record("egress", target=target, method=method, address=address, decision="allow")
                reader, out = await call.connect(address, port)
                flow.relaying = True
                if method == "CONNECT":
                    await flow.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                out.write(first + rest)
                await _relay(self, flow, reader, out, flow.write)
            verdict = "done"
        except Denied as denial:
            verdict = denial.rule
            self._record("egress", target=target[:300], decision="deny", rule=denial.rule)
            await call.answer(
                403, {"error": "egress_denied", "target": target, "rule": denial.rule, "hint": denial.hint}
            )
        except (TimeoutError, OSError) as error:
            verdict = type(error).__name__
            hint = "the host did not answer; this is no denial"
            await call.answer(502, {"error": "egress_failed", "target": target, "hint": hint})
        except ValueError as error:
            verdict = "bad_request"
            await call.answer(400, {"error": "bad_request", "hint": str(error)})
        finally:
            if call.writer is not None:
                call.writer.close()
            self.send(flow.number, "close")
            self._flows.pop(flow.number, None)
            self._record(
                "egress_end", target=target[:300], verdict=verdict, bytes_out=flow.num_in, bytes_in=flow.num_out,
                wall_s=round(time.monotonic() - began, 3), **call.noted,
            )  # fmt: skip

    async def _with_secrets(
        self, call: "_Call", method: str, name: str, port: int, address: str, rest: bytes
    ) -> None:
        """TLS ends here and begins anew; between the two the request is checked and gets its secrets."""
        if method != "CONNECT" or self._tls is None:
            raise Denied("secret_needs_tls", f"a secret is bound to {name}:{port}: speak https to it")
        await call.flow.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        call.flow.relaying = True  # from here on an answer goes inside TLS, or nowhere
        inside = TlsEnd(call.flow, self._tls.authority().context(name), rest)
        await asyncio.wait_for(inside.handshake(), HEAD_TIMEOUT_S)
        call.inside = inside
        head, rest = await asyncio.wait_for(_read_head(inside), HEAD_TIMEOUT_S)
        head, request, redactor = self._keyring.put_in(head, name, port)
        self._record(
            "egress", target=f"{name}:{port}", method="CONNECT", address=address, decision="allow", request=request,
            put_in=[secret.name for secret in self._keyring.of(name, port)],
        )  # fmt: skip
        reader, out = await call.connect(address, port, tls=self._tls.upstream, name=name)
        out.write(head + rest)
        await out.drain()

        answer = bytearray()  # its head, until it is whole

        async def black(data: bytes) -> None:
            if not call.answered:
                answer.extend(data)
                if b"\r\n\r\n" not in answer:
                    if len(answer) > MAX_HEAD:
                        raise OSError("the host's answer has no head")
                    return
                if _COMPRESSED.search(answer.partition(b"\r\n\r\n")[0]):
                    raise Denied(
                        "secret_encoding", f"{name} answers compressed, where a secret could not be found"
                    )
                call.answered, data = True, bytes(answer)
            await inside.write(redactor.feed(data))

        await _relay(self, inside, reader, out, black)
        if not call.answered:
            raise OSError("the host's answer has no head")
        await inside.write(redactor.end())
        await inside.end()
        call.noted["echoes"] = redactor.num_found

    def _admit(self) -> None:
        now = time.monotonic()
        while self._requests and now - self._requests[0] > 60:
            self._requests.popleft()
        if len(self._requests) >= self._egress.max_requests_per_minute:
            raise Denied(
                "request_budget",
                f"more than {self._egress.max_requests_per_minute} requests in a minute; wait",
            )
        if len(self._flows) > self._egress.max_connections:
            raise Denied(
                "connection_budget",
                f"more than {self._egress.max_connections} connections at once; close some",
            )
        self._requests.append(now)


class _Flow:
    """One connection of the guest, as a stream with windows on both sides."""

    def __init__(self, gate: Gate, number: int) -> None:
        self.gate = gate
        self.number = number
        self.task: asyncio.Future[None]
        self.num_in = self.num_out = 0
        self.relaying = False
        self._in = bytearray()
        self._ended = False
        self._arrived = asyncio.Event()
        self._room = WINDOW
        self._has_room = asyncio.Event()

    def feed(self, data: bytes) -> None:
        if len(self._in) + len(data) > 2 * WINDOW:  # it was never given room for that
            self.task.cancel()
            return
        self._in += data
        self._ended = self._ended or not data
        self._arrived.set()

    def give_room(self, count: int) -> None:
        self._room += count
        self._has_room.set()

    async def read(self) -> bytes:
        while not self._in and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._in)
        self._in.clear()
        if data:
            self.num_in += len(data)
            self.gate.send(self.number, "room", n=len(data))
            self.gate.spend(len(data))
        return data

    async def write(self, data: bytes) -> None:
        self.num_out += len(data)
        for start in range(0, len(data), CHUNK):
            piece = data[start : start + CHUNK]
            while self._room < len(piece):
                self._has_room.clear()
                await asyncio.wait_for(self._has_room.wait(), IDLE_TIMEOUT_S)
            self._room -= len(piece)
            self.gate.send(self.number, "data", d=base64.b64encode(piece).decode())


class _Call:
    """What has become of one connection so far: an answer of ours goes wherever the guest still reads one."""

    def __init__(self, flow: _Flow) -> None:
        self.flow = flow
        self.inside: TlsEnd | None = None
        self.answered = False  # the host has begun to
        self.writer: asyncio.StreamWriter | None = None
        self.noted: dict[str, Any] = {}

    async def connect(
        self, address: str, port: int, *, tls: ssl.SSLContext | None = None, name: str | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(address, port, ssl=tls, server_hostname=name, limit=MAX_HEAD),
            CONNECT_TIMEOUT_S,
        )
        self.writer = writer
        return reader, writer

    async def answer(self, status: int, body: dict[str, Any]) -> None:
        """Say why not; in the middle of someone's body there is no place for it, and the connection just ends."""
        if self.answered or (self.flow.relaying and self.inside is None):
            return
        data = json.dumps(body).encode()
        words = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}[status]
        head = (
            f"HTTP/1.1 {status} {words}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        )
        end: Stream = self.inside or self.flow
        with contextlib.suppress(OSError):  # of which a timeout is one
            async with asyncio.timeout(5):
                await end.write(head.encode() + b"Connection: close\r\n\r\n" + data)
                if self.inside is not None:
                    await self.inside.end()


async def _read_head(end: Stream) -> tuple[bytes, bytes]:
    head = b""
    while b"\r\n\r\n" not in head:
        data = await end.read()
        head += data
        if not data or len(head) > MAX_HEAD:
            raise ValueError("this is an HTTP proxy: send a whole request head of at most 64 KiB")
    start, _, rest = head.partition(b"\r\n\r\n")
    return start, rest


def _understand(head: bytes) -> tuple[str, str, int, bytes]:
    """(method, host, port, bytes to send on) of a request head. One request a connection: nothing can be smuggled behind."""
    lines = head.split(b"\r\n")
    if any(b"\n" in line or b"\r" in line or b"\0" in line for line in lines):
        raise ValueError("bare line breaks in a head")
    try:
        method, target, version = lines[0].decode("ascii").split(" ")
    except (ValueError, UnicodeDecodeError):
        raise ValueError("the request line cannot be read") from None
    if version not in ("HTTP/1.1", "HTTP/1.0") or not re.fullmatch(r"[A-Z]{1,16}", method):
        raise ValueError("only HTTP/1.0 and 1.1 are spoken")
    if method == "CONNECT":
        host, _, port = target.rpartition(":")
        if not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError("CONNECT needs host:port")
        return method, host, int(port), b""
    url = urlsplit(target)
    if url.scheme != "http" or not url.hostname or url.username or url.password:
        raise ValueError("send http:// addresses whole, and CONNECT for https")
    names = [line.partition(b":")[0].strip().lower() for line in lines[1:]]
    if names.count(b"content-length") + names.count(b"transfer-encoding") > 1 or b"upgrade" in names:
        raise ValueError("more than one length, or an upgrade")
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    drop = {b"host", b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive"}
    kept = [line for line, name in zip(lines[1:], names, strict=True) if name not in drop]
    host = url.hostname if url.port is None else f"{url.hostname}:{url.port}"
    out = [f"{method} {path} {version}".encode(), b"Host: " + host.encode(), b"Connection: close", *kept]
    return method, url.hostname, url.port or 80, b"\r\n".join(out) + b"\r\n\r\n"


async def _relay(
    gate: Gate,
    end: Stream,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    give: Callable[[bytes], Awaitable[None]],
) -> None:
    """Both ways until the host has said all; `give` takes what it says."""

    async def outward() -> None:
        while data := await end.read():
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def inward() -> None:
        while data := await asyncio.wait_for(reader.read(CHUNK), IDLE_TIMEOUT_S):
            gate.spend(len(data))
            await give(data)

    sending = asyncio.ensure_future(outward())
    try:
        await inward()
    finally:
        sending.cancel()
        result = (await asyncio.gather(sending, return_exceptions=True))[0]
    if isinstance(result, Denied):
        raise result
