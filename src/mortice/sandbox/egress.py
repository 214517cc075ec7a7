"""The only way out of a sandbox: a proxy on the host that knows names, rules and budgets.

The guest has no route and no name server. Its agent carries connections to a listener of its own loopback here; this side
speaks HTTP: CONNECT, and plain requests with an absolute address. A name is looked up only if a rule allows it, every
address it has is checked, and the one that was checked is the one connected to. A denial is an answer that a program and a
model can read, never silence.
"""

import asyncio
import base64
import ipaddress
import json
import re
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from mortice.sandbox.channel import CHUNK, Channel, Message
from mortice.sandbox.contract import Egress
from mortice.specs.errors import RequestError

MAX_HEAD = 64 * 1024
WINDOW = 256 * 1024
CONNECT_TIMEOUT_S = 15.0
HEAD_TIMEOUT_S = 15.0
IDLE_TIMEOUT_S = 120.0
Resolve = Callable[[str, int], Awaitable[list[str]]]
CheckAddresses = Callable[[str, list[str]], str]

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_NUMBERLIKE = re.compile(r"(0x[0-9a-f]+|[0-9.]+|[0-9a-fx.]*)")


class Denied(Exception):
    """A flow that is not allowed: the rule that says so, and what to do."""

    def __init__(self, rule: str, hint: str) -> None:
        super().__init__(rule)
        self.rule = rule
        self.hint = hint


class Rules:
    """An `Egress`, read once. Raises RequestError for a rule that cannot be."""

    def __init__(self, egress: Egress) -> None:
        self.egress = egress
        self._exact: set[tuple[str, int]] = set()
        self._under: set[tuple[str, int]] = set()
        for rule in egress.allow:
            host, _, port = rule.rpartition(":")
            if not port.isdigit() or not 1 <= int(port) <= 65535:
                raise RequestError(f"{rule!r} is not host:port", param="egress.allow")
            wild = host.startswith("*.")
            name = host.removeprefix("*.").lower()
            if not _NAME.fullmatch(name):
                raise RequestError(
                    f"{rule!r}: {host!r} is no host name (addresses are not allowed by number)",
                    param="egress.allow",
                )
            (self._under if wild else self._exact).add((name.rstrip("."), int(port)))
        if egress.mode == "allowlist" and not egress.allow:
            raise RequestError("mode allowlist needs at least one host:port", param="egress.allow")

    def check_name(self, host: str, port: int) -> str:
        """The name to look up. Raises Denied before anything is looked up."""
        name = host.lower().rstrip(".")
        if ":" in name or _NUMBERLIKE.fullmatch(name):
            raise Denied("no_address_literals", "use the host's name; addresses by number are not allowed")
        if not _NAME.fullmatch(name) or len(name) > 253:
            raise Denied("bad_name", "the host name is malformed")
        if self.egress.mode == "public":
            if port not in (80, 443):
                raise Denied("port", "only ports 80 and 443 are open")
            return name
        if (name, port) in self._exact:
            return name
        parts = name.split(".")
        if any((".".join(parts[i:]), port) in self._under for i in range(1, len(parts))):
            return name
        allowed = ", ".join(self.egress.allow) or "nothing"
        raise Denied("not_on_allow_list", f"{name}:{port} is not allowed here; allowed: {allowed}")


def check_addresses(name: str, addresses: list[str]) -> str:
    """The address to connect to. One private address among public ones denies all: that is how rebinding looks."""
    if not addresses:
        raise Denied("no_such_name", f"{name} has no address")
    for text in addresses:
        address = ipaddress.ip_address(text.split("%")[0])
        inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
        if not address.is_global or not inner.is_global or address.is_multicast:
            raise Denied("private_address", f"{name} leads to {text}, which is not a public address")
    return addresses[0]


async def resolve(name: str, port: int) -> list[str]:
    """Every address of a name, from the host's own resolver."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Gate:
    """The host's end of one sandbox's way out. `record` writes to the box's chain."""

    def __init__(
        self,
        egress: Egress,
        record: Callable[..., None],
        *,
        resolve: Resolve = resolve,
        check_addresses: CheckAddresses = check_addresses,
    ) -> None:
        self._rules = Rules(egress)
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
        target, verdict = "", "closed"
        writer: asyncio.StreamWriter | None = None
        try:
            head, rest = await asyncio.wait_for(flow.read_head(), HEAD_TIMEOUT_S)
            method, host, port, first = _understand(head)
            target = f"{host}:{port}"
            self._admit()
            name = self._rules.check_name(host, port)
            address = self._check_addresses(name, await self._resolve(name, port))
            self._record("egress", target=target, method=method, address=address, decision="allow")
            reader, out = await asyncio.wait_for(asyncio.open_connection(address, port), CONNECT_TIMEOUT_S)
            writer = out
            flow.relaying = True
            if method == "CONNECT":
                await flow.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            out.write(first + rest)
            await _relay(flow, reader, out)
            verdict = "done"
        except Denied as denial:
            verdict = denial.rule
            self._record("egress", target=target[:300], decision="deny", rule=denial.rule)
            await flow.answer(
                403, {"error": "egress_denied", "target": target, "rule": denial.rule, "hint": denial.hint}
            )
        except (TimeoutError, OSError) as error:
            verdict = type(error).__name__
            hint = "the host did not answer; this is no denial"
            await flow.answer(502, {"error": "egress_failed", "target": target, "hint": hint})
        except ValueError as error:
            verdict = "bad_request"
            await flow.answer(400, {"error": "bad_request", "hint": str(error)})
        finally:
            if writer is not None:
                writer.close()
            self.send(flow.number, "close")
            self._flows.pop(flow.number, None)
            self._record(
                "egress_end", target=target[:300], verdict=verdict, bytes_out=flow.num_in, bytes_in=flow.num_out,
                wall_s=round(time.monotonic() - began, 3),
            )  # fmt: skip

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

    async def read_head(self) -> tuple[bytes, bytes]:
        head = b""
        while b"\r\n\r\n" not in head:
            data = await self.read()
            head += data
            if not data or len(head) > MAX_HEAD:
                raise ValueError("this is an HTTP proxy: send a whole request head of at most 64 KiB")
        start, _, rest = head.partition(b"\r\n\r\n")
        return start, rest

    async def write(self, data: bytes) -> None:
        self.num_out += len(data)
        for start in range(0, len(data), CHUNK):
            piece = data[start : start + CHUNK]
            while self._room < len(piece):
                self._has_room.clear()
                await asyncio.wait_for(self._has_room.wait(), IDLE_TIMEOUT_S)
            self._room -= len(piece)
            self.gate.send(self.number, "data", d=base64.b64encode(piece).decode())

    async def answer(self, status: int, body: dict[str, Any]) -> None:
        """Say why not; in the middle of someone's body there is no place for it, and the connection just ends."""
        if self.relaying:
            return
        data = json.dumps(body).encode()
        words = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}[status]
        head = (
            f"HTTP/1.1 {status} {words}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        )
        try:
            await asyncio.wait_for(self.write(head.encode() + b"Connection: close\r\n\r\n" + data), 5)
        except TimeoutError:
            return


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


async def _relay(flow: _Flow, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def outward() -> None:
        while data := await flow.read():
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def inward() -> None:
        while data := await asyncio.wait_for(reader.read(CHUNK), IDLE_TIMEOUT_S):
            flow.gate.spend(len(data))
            await flow.write(data)

    sending = asyncio.ensure_future(outward())
    try:
        await inward()
    finally:
        sending.cancel()
        result = (await asyncio.gather(sending, return_exceptions=True))[0]
    if isinstance(result, Denied):
        raise result
