"""An OpenAI endpoint that plays a script: for tests of the harness, and to measure what the client itself
costs.

It generates nothing. A request's prompt counts one token a word (or id) and three for the template in the
chat API.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Ending = Literal["done", "error event", "cut", "close", "no done"]


@dataclass(frozen=True, slots=True)
class Script:
    """How one request is answered."""

    first_s: float = 0.0  # before the first chunk
    gap_s: float = 0.0  # before each further chunk
    tokens_per_chunk: int = 1
    num_tokens: int | None = None  # None: as many as were asked for
    status: int = 200
    message: str = "scripted refusal"
    ending: Ending = "done"  # cut: the socket closes inside the stream; close: before any answer
    stop_after: int | None = None  # chunks sent before an ending other than "done"
    usage: bool = True
    text: str = " word"


def _default(_index: int, _body: dict) -> Script:
    return Script()


@dataclass(slots=True)
class ScriptedServer:
    """Serves on 127.0.0.1 at a port of the system's choice inside `async with`."""

    script: Callable[[int, dict], Script] = (
        _default  # (number of the request, its body) -> how it is answered
    )
    models: tuple[str, ...] = ("scripted",)
    tokenize: bool = False  # offer /tokenize
    metrics: Callable[[], str] | None = None  # body of /metrics; None: 404
    bodies: list[dict] = field(default_factory=list)  # every generating request that came
    closed_early: int = 0  # clients that hung up inside a stream
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task] = field(default_factory=set)

    @property
    def base_url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def __aenter__(self) -> "ScriptedServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client is done with this connection, or the server closes
        except ConnectionError:
            self.closed_early += 1
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False if the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        _, path, _ = head[0].split(" ")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
        }
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        if path.endswith("/completions"):
            return await self._generate(path, msgspec.json.decode(raw), writer)
        status, kind, body = self._plain(path, raw)
        writer.write(_answer(status, kind, body))
        return True

    def _plain(self, path: str, raw: bytes) -> tuple[int, str, bytes]:
        if path.endswith("/models"):
            document: Any = {
                "object": "list",
                "data": [{"id": name, "object": "model"} for name in self.models],
            }
            return 200, "application/json", msgspec.json.encode(document)
        if path == "/tokenize" and self.tokenize:
            return (
                200,
                "application/json",
                msgspec.json.encode({"count": _prompt_tokens(msgspec.json.decode(raw))}),
            )
        if path == "/metrics" and self.metrics is not None:
            return 200, "text/plain", self.metrics().encode()
        return 404, "application/json", _error(f"no route {path}")

    async def _generate(self, path: str, body: dict, writer: asyncio.StreamWriter) -> bool:
        index = len(self.bodies)
        self.bodies.append(body)
        script = self.script(index, body)
        if script.ending == "close":
            return False
        if script.status != 200:
            writer.write(_answer(script.status, "application/json", _error(script.message)))
            return True
        chat = path.endswith("/chat/completions")
        asked = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        count = asked if script.num_tokens is None else script.num_tokens
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await self._chunks(script, chat, count, writer)
        if script.ending == "cut":
            return False
        if script.ending == "error event":
            writer.write(_piece(_event(_error(script.message))))
        elif script.ending == "done":
            wants_usage = script.usage and (body.get("stream_options") or {}).get("include_usage")
            closing = _event(_choice(chat, "", "length"))
            if wants_usage:
                usage = {"prompt_tokens": _prompt_tokens(body), "completion_tokens": count}
                closing += _event(msgspec.json.encode({"choices": [], "usage": usage}))
            writer.write(_piece(closing + b"data: [DONE]\n\n"))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _chunks(self, script: Script, chat: bool, count: int, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop()
        due = clock.time() + script.first_s
        piece = _piece(_event(_choice(chat, script.text * script.tokens_per_chunk, None)))
        full, rest = divmod(count, script.tokens_per_chunk)
        limit = full if script.stop_after is None else min(full, script.stop_after)
        for _ in range(limit):
            await asyncio.sleep(max(0.0, due - clock.time()))
            due += script.gap_s
            writer.write(piece)
            await writer.drain()
        if rest and script.stop_after is None:
            await asyncio.sleep(max(0.0, due - clock.time()))
            writer.write(_piece(_event(_choice(chat, script.text * rest, None))))


def _prompt_tokens(body: dict) -> int:
    if "messages" in body:
        return 3 + sum(len(message["content"].split()) for message in body["messages"])
    prompt = body.get("prompt", "")
    return len(prompt) if isinstance(prompt, list) else len(prompt.split())


def _choice(chat: bool, text: str, finish_reason: str | None) -> bytes:
    said = {"delta": {"content": text}} if chat else {"text": text}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
    kind = "chat.completion.chunk" if chat else "text_completion"
    return msgspec.json.encode(
        {"id": "cmpl-0", "object": kind, "created": 0, "model": "scripted", "choices": [choice]}
    )


def _error(message: str) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": "invalid_request_error"}})


def _event(document: bytes) -> bytes:
    return b"data: %s\n\n" % document


def _piece(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _answer(status: int, kind: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %d Scripted\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        kind.encode(),
        len(body),
        body,
    )
