"""An OpenAI-compatible endpoint as an agent's model."""

import asyncio
import json
import os
import random
from collections.abc import Iterable
from typing import Any

import httpx2 as httpx

from mortice.agent.history import Call, Usage
from mortice.agent.model import EndpointSpec, ModelError, ModelUnreachable, Reply

MAX_ANSWER_BYTES = 16 << 20
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
_MENDABLE = (401, 403, 404)  # another key, another address
FINAL = "final_answer"
_FINAL_TOOL = {
    "type": "function",
    "function": {
        "name": FINAL,
        "description": "Give the answer to the task and end. Use it as soon as the answer is known.",
        "parameters": {
            "type": "object",
            "properties": {"answer": {"type": "string"}},
            "required": ["answer"],
            "additionalProperties": False,
        },
    },
}


class EndpointModel:
    provider = "openai"

    def __init__(self, spec: EndpointSpec) -> None:
        self.name = spec.model or "default"
        self._spec = spec
        key = os.environ.get(spec.api_key_env)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(headers=headers, follow_redirects=False)
        self._base = spec.base_url.rstrip("/")
        self._guided: bool | None = {"auto": None, "native": False, "guided": True}[spec.calls]
        self._known = bool(spec.model)

    async def close(self) -> None:
        await self._http.aclose()

    async def reply(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], *, turn: int, timeout_s: float
    ) -> Reply:
        if not self._known or self._guided is None:
            await self._look(timeout_s)
        guided = bool(tools) and bool(self._guided)
        body: dict[str, Any] = {
            "model": self.name,
            "messages": messages,
            "temperature": self._spec.temperature,
            "max_tokens": self._spec.max_tokens,
        }
        if self._spec.seed is not None:
            body["seed"] = self._spec.seed
        if tools:
            body["tools"] = [*tools, _FINAL_TOOL] if guided else tools
            body["tool_choice"] = "required" if guided else "auto"
        if guided:
            body["parallel_tool_calls"] = False
        answer = await self._ask("POST", "/chat/completions", body, timeout_s)
        reply = read_reply(answer, turn)
        return _unwrapped(reply) if guided else reply

    async def _look(self, timeout_s: float) -> None:
        listed = await self._ask("GET", "/models", None, timeout_s)
        models = listed.get("data") if isinstance(listed, dict) else None
        models = [m for m in models if isinstance(m, dict)] if isinstance(models, list) else []
        if not models:
            raise ModelError(f"{self._base}/models lists no model")
        if not self._known:
            self.name, self._known = str(models[0].get("id")), True
        mine = next((m for m in models if m.get("id") == self.name), models[0])
        if self._guided is None:  # servers known to hold a model to `tool_choice: required`
            self._guided = mine.get("owned_by") in ("mortice", "vllm", "sglang")

    async def _ask(self, method: str, path: str, body: Any, timeout_s: float) -> Any:
        """With retries of what may pass: refused connections, overload, faults of the server."""
        trouble = ""
        deadline = asyncio.get_running_loop().time() + timeout_s
        for attempt in range(self._spec.attempts):
            if attempt:
                await asyncio.sleep(min(0.2 * 2**attempt, 5.0) * (0.5 + random.random()))
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            try:
                response = await self._http.request(method, self._base + path, json=body, timeout=left)
            except httpx.HTTPError as error:
                trouble = f"{self._base}: {type(error).__name__} {error}".strip()
                continue
            if response.status_code == 200:
                if len(response.content) > MAX_ANSWER_BYTES:
                    raise ModelError(f"{self._base} answered with {len(response.content)} bytes")
                try:
                    return response.json()
                except ValueError as error:
                    raise ModelError(f"{self._base} did not answer with JSON") from error
            trouble = f"{self._base} answered {response.status_code}: {response.text[:300]}"
            if response.status_code in _MENDABLE:
                break
            if response.status_code not in _AGAIN:
                raise ModelError(trouble)
        raise ModelUnreachable(trouble or f"{self._base} did not answer within {timeout_s:g} s")


def read_reply(answer: Any, turn: int) -> Reply:
    """A chat completion as a Reply; calls whose arguments are no JSON object keep why. ModelError if it is none."""
    try:
        message = answer["choices"][0]["message"]
        usage = answer.get("usage") or {}
        return Reply(
            text=message.get("content") or "",
            calls=tuple(_calls(message.get("tool_calls") or (), turn)),
            usage=Usage(
                input_tokens=int(usage.get("prompt_tokens") or 0),
                output_tokens=int(usage.get("completion_tokens") or 0),
            ),
            model=str(answer.get("model") or ""),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ModelError("the answer is no chat completion") from error


def _calls(raw: Iterable[Any], turn: int) -> Iterable[Call]:
    seen: set[str] = set()
    for index, call in enumerate(raw):
        function = call["function"]
        name = str(function["name"])
        call_id = str(call.get("id") or "")
        if not call_id or call_id in seen:  # some servers leave ids out or give one twice
            call_id = f"call_{turn}_{index}"
        seen.add(call_id)
        malformed: str | None = None
        arguments: Any = {}
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (ValueError, RecursionError) as error:
            malformed = f"the arguments are no JSON: {error}"
        if not isinstance(arguments, dict):
            malformed, arguments = "the arguments are no JSON object", {}
        yield Call(id=call_id, tool=name, arguments=arguments, malformed=malformed)


def _unwrapped(reply: Reply) -> Reply:
    """`final_answer` is no tool but the end."""
    final = next((call for call in reply.calls if call.tool == FINAL), None)
    if final is None:
        return reply
    rest = tuple(call for call in reply.calls if call.tool != FINAL)
    text = str(final.arguments.get("answer", "")) or reply.text
    return Reply(text=text, calls=rest, usage=reply.usage, model=reply.model)
