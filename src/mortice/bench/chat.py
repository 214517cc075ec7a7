"""A conversation with an endpoint: streaming answers, history, and how fast each answer came."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mortice.bench.endpoint import Endpoint
from mortice.bench.negotiate import first_model
from mortice.bench.timeline import Timeline
from mortice.specs.errors import RequestError

Message = dict[str, Any]

HELP = "/reset starts anew, /save FILE writes it as JSON, /quit (or Ctrl-D) ends, Ctrl-C stops an answer"


class Conversation:
    """What was said so far. A turn that failed or was stopped leaves no trace in it."""

    def __init__(
        self, endpoint: Endpoint, *, system: str | None = None, max_tokens: int, temperature: float
    ) -> None:
        """`endpoint` speaks the chat API; an empty model name means the first that it lists."""
        self._endpoint = endpoint
        self._opening: list[Message] = [{"role": "system", "content": system}] if system else []
        self._fields = {
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        self.messages: list[Message] = list(self._opening)

    async def begin(self) -> str:
        """Find the model and return its name. Raises Unavailable if no server answers."""
        if not self._endpoint.model:
            self._endpoint.model = await first_model(self._endpoint)
        return self._endpoint.model

    async def ask(self, text: str, on_text: Callable[[str], None]) -> Timeline:
        """Say `text`; pieces of the answer go to `on_text` as they come. The timeline says how it went."""
        messages = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []

        def take(piece: str) -> None:
            pieces.append(piece)
            on_text(piece)

        timeline = Timeline(index=len(self.messages), prompt_len=0, output_len=0)
        await self._endpoint.stream(self._endpoint.chat_body(messages, self._fields), timeline, take)
        if timeline.ok:
            self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
        return timeline

    def reset(self) -> None:
        """Back to the system prompt alone."""
        self.messages = list(self._opening)

    def save(self, path: str | Path) -> None:
        """Write the messages as JSON. Raises RequestError if the file cannot be written."""
        try:
            Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(self.messages), indent=1) + b"\n")
        except OSError as error:
            raise RequestError(f"cannot write {path}: {error.strerror}", param="/save") from error


def speed(timeline: Timeline) -> str:
    """TTFT, tokens and tokens a second of an answer, in one line; the rate counts from the first token on."""
    words = [f"TTFT {timeline.ttft_s * 1e3:.0f} ms", f"{timeline.num_tokens} tokens"]
    if timeline.tpot_s:
        words.append(f"{1 / timeline.tpot_s:.1f} tokens/s")
    if timeline.finish_reason == "length":
        words.append("cut at --max-tokens")
    return ", ".join(words)
