"""What the users of soak.py do: one method a kind of request, each checking what it got."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from mortice.bench.http import Client, ExchangeFailed
from mortice.bench.prompts import WORDS
from mortice.bench.sse import SSEReader

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "maxLength": 12},
        "far": {"type": "boolean"},
        "ships": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["place", "far", "ships"],
    "additionalProperties": False,
}
KINDS = {  # how often of a hundred
    "whole": 16,
    "stream": 26,
    "hang_up_stream": 14,
    "hang_up_whole": 8,
    "choices": 10,
    "schema": 10,
    "long": 6,
    "shared_prefix": 6,
    "refused": 4,
}


@dataclass(frozen=True, slots=True)
class Failure:
    kind: str
    what: str


class Wrong(Exception):
    """The server answered, and not with what it should have."""


class HungUp(Exception):
    """This client has heard enough."""


class User:
    """Draws a kind, does it, draws the next, until `stop` is set."""

    def __init__(
        self,
        url: str,
        seed: int,
        number: int,
        ended: Counter[str],
        failures: list[Failure],
        stop: asyncio.Event,
    ) -> None:
        """Writes into `ended` (kind: requests that ended as they should) and `failures`, shared by all users."""
        self._client = Client(url, timeout_s=300)
        self._random = random.Random(f"{seed} {number}")
        self._prefix = " ".join(random.Random(f"prefix {seed}").choices(WORDS, k=400))
        self._ended = ended
        self._failures = failures
        self._stop = stop

    async def work(self) -> None:
        while not self._stop.is_set():
            (kind,) = self._random.choices(list(KINDS), list(KINDS.values()))
            try:
                await getattr(self, kind)()
            except (Wrong, ExchangeFailed, ValueError, LookupError) as error:  # the last two: no such shape
                self._failures.append(Failure(kind, f"{type(error).__name__}: {error}"))
                await asyncio.sleep(0.5)  # a server that refuses at once must not be asked in a tight loop
            else:
                self._ended[kind] += 1
        self._client.close()

    async def whole(self) -> None:
        num_out = self._random.randint(1, 48)
        answer = await self._ask(COMPLETIONS, self._completion(self._random.randint(4, 160), num_out))
        expect(
            answer["usage"]["completion_tokens"] == num_out, f"{answer['usage']} where {num_out} were asked"
        )

    async def stream(self) -> None:
        num_out = self._random.randint(2, 96)
        await self._stream(self._completion(self._random.randint(4, 160), num_out), num_out)

    async def hang_up_stream(self) -> None:
        num_out = self._random.randint(16, 200)
        body = self._completion(self._random.randint(4, 300), num_out)
        try:
            await self._stream(body, num_out, hang_up_after=self._random.randint(1, 12))
        except HungUp:
            return

    async def hang_up_whole(self) -> None:
        body = self._completion(self._random.randint(4, 600), 200)
        try:
            async with asyncio.timeout(self._random.uniform(0.01, 1.5)):
                await self._ask(COMPLETIONS, body)
        except TimeoutError:
            return

    async def choices(self) -> None:
        count = self._random.randint(2, 4)
        body = self._completion(self._random.randint(4, 120), 24) | {"n": count, "temperature": 0.9}
        answer = await self._ask(COMPLETIONS, body)
        indices = sorted(choice["index"] for choice in answer["choices"])
        expect(indices == list(range(count)), f"choices {indices} where n was {count}")

    async def schema(self) -> None:
        content = f"Describe a voyage in JSON: {self._words(12)}."
        form = {"type": "json_schema", "json_schema": {"name": "voyage", "schema": SCHEMA, "strict": True}}
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": content}],
            "response_format": form,
            "max_tokens": 160,
            "temperature": 0.7,
            "seed": self._random.randrange(1 << 30),
        }
        answer = await self._ask(CHAT, body)
        (choice,) = answer["choices"]
        if choice["finish_reason"] == "length":
            return  # a small model may pad with blanks that JSON allows until its tokens are spent
        voyage = json.loads(choice["message"]["content"])
        expect(set(voyage) == set(SCHEMA["required"]), f"keys {sorted(voyage)}")
        expect(isinstance(voyage["far"], bool) and isinstance(voyage["ships"], list), f"types of {voyage}")

    async def long(self) -> None:
        num_out = self._random.randint(1, 16)
        await self._stream(self._completion(self._random.randint(1200, 3000), num_out), num_out)

    async def shared_prefix(self) -> None:
        body = self._completion(8, 8)
        body["prompt"] = f"{self._prefix} {body['prompt']}"
        await self._stream(body, 8)

    async def refused(self) -> None:
        """What no server should take: 400 with the field's name, and nothing else harmed."""
        field, value = self._random.choice([("temperature", -1), ("n", 0), ("max_tokens", -3), ("top_p", 7)])
        answer = await self._client.exchange(
            "POST", COMPLETIONS, encode(self._completion(4, 4) | {field: value})
        )
        expect(answer.status == 400, f"{field}={value} got status {answer.status}")
        error = json.loads(answer.body)["error"]
        expect(error["param"] == field, f"{field}={value} was blamed on {error['param']}")

    def _completion(self, num_words: int, num_out: int) -> dict[str, Any]:
        return {
            "model": "smollm2",
            "prompt": self._words(num_words),
            "max_tokens": num_out,
            "ignore_eos": True,
            "temperature": self._random.choice([0.0, 0.0, 0.8]),
            "seed": self._random.randrange(1 << 30),
        }

    def _words(self, count: int) -> str:
        return " ".join(self._random.choices(WORDS, k=count))

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._client.exchange("POST", path, encode(body))
        expect(answer.status == 200, f"status {answer.status}: {answer.body[:300].decode()}")
        document: dict[str, Any] = json.loads(answer.body)
        return document

    async def _stream(self, body: dict[str, Any], num_out: int, hang_up_after: int | None = None) -> None:
        """Read a stream to its end and check it; raise HungUp after so many chunks, where a number is given."""
        events: list[bytes] = []
        reader = SSEReader()
        enough = asyncio.Event()

        def sink(_: float, piece: bytes) -> None:
            events.extend(reader.feed(piece))
            if hang_up_after is not None and len(events) >= hang_up_after:
                enough.set()

        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        exchange = asyncio.create_task(self._client.exchange("POST", COMPLETIONS, encode(body), sink=sink))
        if hang_up_after is not None:
            heard = asyncio.create_task(enough.wait())
            await asyncio.wait({exchange, heard}, return_when=asyncio.FIRST_COMPLETED)
            heard.cancel()
            if not exchange.done():
                exchange.cancel()
                await asyncio.gather(exchange, return_exceptions=True)
                raise HungUp
        answer = await exchange
        expect(answer.status == 200, f"status {answer.status}: {answer.body[:300].decode()}")
        expect(events[-1:] == [b"[DONE]"], f"the stream ended with {events[-1:]}")
        chunks = [json.loads(event) for event in events[:-1]]
        errors = [chunk["error"] for chunk in chunks if "error" in chunk]
        expect(not errors, f"error in the stream: {errors[:1]}")
        tokens = chunks[-1]["usage"]["completion_tokens"]
        expect(tokens == num_out, f"{tokens} tokens where {num_out} were asked")


def encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)
