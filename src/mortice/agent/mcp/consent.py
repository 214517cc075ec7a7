"""What a server may ask of the user and of our model, and who says yes."""

from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import mcp_types as types
import msgspec

from mortice.agent.mcp.config import McpServer
from mortice.agent.model import Model, ModelError

Choice = Literal["accept", "decline", "cancel"]
_SECRET = (
    "password",
    "passwd",
    "secret",
    "token",
    "api key",
    "api_key",
    "apikey",
    "credential",
    "pin code",
    "cvv",
)
MAX_SAMPLE_TOKENS = 2048
MAX_SAMPLE_CHARS = 100_000


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What a server wants to know. `fields`: name to JSON Schema of a flat value."""

    server: str
    message: str
    fields: dict[str, dict[str, Any]]
    required: tuple[str, ...]


class Consent(Protocol):
    """Asks the user, who is always told which server it is."""

    async def form(self, form: Form) -> tuple[Choice, dict[str, Any]]: ...

    async def url(self, server: str, message: str, url: str) -> Choice: ...

    async def sample(self, server: str, messages: list[dict[str, Any]]) -> bool: ...


class Nobody:
    """Where no user can be asked: everything is cancelled, nothing is accepted."""

    async def form(self, form: Form) -> tuple[Choice, dict[str, Any]]:
        return "cancel", {}

    async def url(self, server: str, message: str, url: str) -> Choice:
        return "cancel"

    async def sample(self, server: str, messages: list[dict[str, Any]]) -> bool:
        return False


class Gate:
    """The callbacks of one server's client, under its policy."""

    def __init__(self, name: str, server: McpServer, consent: Consent, model: Model | None) -> None:
        self._name = name
        self._server = server
        self._consent = consent
        self._model = model
        self._sampled_at: list[float] = []

    async def elicit(self, params: types.ElicitRequestParams) -> types.ElicitResult | types.ErrorData:
        if isinstance(params, types.ElicitRequestURLParams):
            if urlsplit(params.url).scheme not in ("http", "https"):
                return types.ElicitResult(action="decline")
            return types.ElicitResult(action=await self._consent.url(self._name, params.message, params.url))
        schema: Any = params.requested_schema
        schema = schema if isinstance(schema, dict) else schema.model_dump(by_alias=True, exclude_none=True)
        fields = {str(k): dict(v) for k, v in (schema.get("properties") or {}).items() if isinstance(v, dict)}
        if any(_secret(name, field) for name, field in fields.items()):
            return types.ElicitResult(action="decline")  # secrets are never typed into a server's form
        form = Form(
            server=self._name,
            message=params.message[:2000],
            fields=fields,
            required=tuple(schema.get("required") or ()),
        )
        action, content = await self._consent.form(form)
        if action != "accept":
            return types.ElicitResult(action=action)
        defaults = {name: field["default"] for name, field in fields.items() if "default" in field}
        return types.ElicitResult(action="accept", content={**defaults, **content})

    async def sample(
        self, params: types.CreateMessageRequestParams, now_s: float
    ) -> types.CreateMessageResult | types.ErrorData:
        if self._model is None or self._server.sampling == "off":
            return _no("sampling is not allowed")
        if params.tools:
            return _no("sampling with tools is not allowed")
        self._sampled_at = [at for at in self._sampled_at if now_s - at < 60]
        if len(self._sampled_at) >= self._server.sampling_per_minute:
            return _no("too many sampling requests a minute")
        self._sampled_at.append(now_s)
        messages = _messages(params)
        if messages is None:
            return _no("only text can be sampled from, and not too much of it")
        if self._server.sampling == "ask" and not await self._consent.sample(self._name, messages):
            return _no("the user said no")
        try:
            reply = await self._model.reply(messages, [], turn=0, timeout_s=120.0)
        except ModelError:
            return _no("the model gave no answer")
        return types.CreateMessageResult(
            role="assistant",
            content=types.TextContent(type="text", text=reply.text),
            model=reply.model or self._model.name,
            stop_reason="endTurn",
        )


def _messages(params: types.CreateMessageRequestParams) -> list[dict[str, Any]] | None:
    messages = []
    if params.system_prompt:
        messages.append({"role": "system", "content": params.system_prompt})
    for message in params.messages:
        blocks = message.content if isinstance(message.content, list) else [message.content]
        if not all(isinstance(block, types.TextContent) for block in blocks):
            return None
        text = "\n".join(block.text for block in blocks if isinstance(block, types.TextContent))
        messages.append({"role": message.role, "content": text})
    return messages if sum(len(m["content"]) for m in messages) <= MAX_SAMPLE_CHARS else None


def _secret(name: str, field: dict[str, Any]) -> bool:
    text = f"{name} {field.get('title', '')}".lower()
    return field.get("format") == "password" or any(word in text for word in _SECRET)


def _no(message: str) -> types.ErrorData:
    return types.ErrorData(code=types.INVALID_REQUEST, message=message)
