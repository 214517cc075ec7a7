"""An OpenAI endpoint as the harness uses it: one streamed answer, timed; and what the server says of
itself."""

import asyncio
import re
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from mortice.bench.http import Answer, Client, ExchangeFailed, now
from mortice.bench.sse import SSEReader
from mortice.bench.timeline import Timeline

Api = Literal["completions", "chat"]
Prompt = str | list[int]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None

    def said(self) -> str:
        if self.delta is None:
            return self.text or ""
        return self.delta.content or self.delta.reasoning_content or self.delta.reasoning or ""


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)


class Endpoint:
    """One model behind one base URL."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api: Api = "completions",
        api_key: str | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        """`base_url` ends where OpenAI's does, before /completions. Raises RequestError if it is no such
        URL."""
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.api: Api = api
        self.client = Client(self.base_url, api_key=api_key, timeout_s=timeout_s)
        self.path = urlsplit(self.base_url).path
        self.root = self.path.removesuffix("/v1")
        self.route = f"{self.path}/chat/completions" if api == "chat" else f"{self.path}/completions"

    def body(self, prompt: Prompt, fields: dict[str, Any]) -> bytes:
        """The JSON of a request; in the chat API the prompt is the user's only message."""
        if self.api == "chat":
            return self.chat_body([{"role": "user", "content": prompt}], fields)
        return msgspec.json.encode({"model": self.model, "prompt": prompt} | fields)

    def chat_body(self, messages: list[dict[str, Any]], fields: dict[str, Any]) -> bytes:
        """The JSON of a chat request with these messages."""
        return msgspec.json.encode({"model": self.model, "messages": messages} | fields)

    async def stream(
        self,
        body: bytes,
        timeline: Timeline,
        on_text: Callable[[str], None] | None = None,
        *,
        leaves_after_s: float | None = None,
    ) -> None:
        """Send a streaming request and write what comes, and when, into `timeline`. Failures are written,
        not raised. After `leaves_after_s` the client hangs up, which counts as one."""
        watcher = _Watcher(timeline, on_text)
        timeline.sent_s = now()
        try:
            async with asyncio.timeout(leaves_after_s):
                answer = await self.client.exchange("POST", self.route, body, sink=watcher.take)
            failure = watcher.verdict(answer)
        except TimeoutError:
            failure = "hung up", f"the client left after {leaves_after_s:g} s, as the trace says"
        except ExchangeFailed as failed:
            # A server may hang up without the closing chunk once it has said [DONE]; everything came.
            failure = (
                None if watcher.finished and failed.kind == "truncated" else (failed.kind, failed.detail)
            )
        timeline.ended_s = now()
        if failure is not None:
            timeline.failure, timeline.detail = failure[0], one_line(failure[1])

    async def json(self, method: str, path: str, document: dict | None = None) -> tuple[int, Any]:
        """Status and decoded body (None where it is no JSON). Raises ExchangeFailed."""
        answer = await self.client.exchange(
            method, path, None if document is None else msgspec.json.encode(document)
        )
        try:
            return answer.status, msgspec.json.decode(answer.body)
        except msgspec.DecodeError:
            return answer.status, None

    def close(self) -> None:
        self.client.close()


class _Watcher:
    """Reads the stream of one answer into a timeline."""

    def __init__(self, timeline: Timeline, on_text: Callable[[str], None] | None) -> None:
        self._timeline = timeline
        self._on_text = on_text
        self._reader = SSEReader()
        self._error: str | None = None
        self._num_ids = 0  # token ids seen since the last chunk with content
        self._has_ids = False
        self._done = False

    @property
    def finished(self) -> bool:
        return self._done and self._error is None

    def take(self, arrival_s: float, piece: bytes) -> None:
        for data in self._reader.feed(piece):
            if data == b"[DONE]":
                self._done = True
                continue
            chunk = _chunks.decode(data)
            if chunk.error is not None:
                self._error = self._error or error_message(chunk.error)
            for choice in chunk.choices:
                self._choice(arrival_s, choice)
            if chunk.usage is not None:
                self._usage(chunk.usage)

    def _choice(self, arrival_s: float, choice: _Choice) -> None:
        timeline = self._timeline
        if choice.token_ids is not None:
            self._has_ids = True
            self._num_ids += len(choice.token_ids)
        if choice.finish_reason is not None:
            timeline.finish_reason = choice.finish_reason
        text = choice.said()
        if not text:
            return
        timeline.chunk_s.append(arrival_s)
        timeline.chunk_chars.append(len(text))
        if self._has_ids:
            timeline.chunk_tokens = timeline.chunk_tokens or []
            timeline.chunk_tokens.append(self._num_ids)
            self._num_ids = 0
        if self._on_text is not None:
            self._on_text(text)

    def _usage(self, usage: Usage) -> None:
        timeline = self._timeline
        timeline.prompt_tokens = usage.prompt_tokens
        timeline.usage_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            timeline.cached_tokens = usage.prompt_tokens_details.cached_tokens

    def verdict(self, answer: Answer) -> tuple[str, str] | None:
        """Kind and detail of what went wrong in an answer that came whole; None if it is good."""
        if answer.status != 200:
            return f"status {answer.status}", error_message_of(answer)
        if self._error is not None:
            return "error event", self._error
        if not (self._done or self._timeline.finish_reason):
            return "truncated", "the stream ended without a finish reason or [DONE]"
        if self._timeline.finish_reason in ("abort", "error"):
            return "aborted", f"the server ended it with finish_reason {self._timeline.finish_reason!r}"
        if not self._timeline.chunk_s:
            return "no content", "the answer held no text"
        return None


def error_message(error: Any) -> str:
    """The line inside an OpenAI error object, or whatever stands in its place."""
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)


def error_message_of(answer: Answer) -> str:
    try:
        document = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return answer.body[:200].decode("utf-8", "replace") or f"HTTP status {answer.status}"
    if isinstance(document, dict) and (error := document.get("error") or document.get("detail")):
        return error_message(error)
    return error_message(document)


def one_line(text: str, limit: int = 300) -> str:
    return re.sub(r"\s+", " ", text).strip()[:limit]
