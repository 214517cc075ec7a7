"""Who thinks: a protocol, and what an agent says of its model. `models.py` next door makes one of them."""

from typing import Any, Literal, Protocol

import msgspec

from mortice.agent.history import Call, Usage


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    calls: tuple[Call, ...] = ()
    usage: Usage = Usage()
    model: str = ""


class Model(Protocol):
    name: str
    provider: str

    async def reply(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], *, turn: int, timeout_s: float
    ) -> Reply:
        """The answer to a conversation. ModelError if none can be had."""

    async def close(self) -> None: ...


class ModelError(Exception):
    """The endpoint refused, failed or stayed silent, after retries."""


class ModelUnreachable(ModelError):
    """Nothing is wrong with what was asked: the endpoint is down, full, or wants another key. Asking later may do."""


class EndpointSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="endpoint"):
    """Any OpenAI-compatible server. `calls`: native (the model decides when to call), guided (the server is told that
    each answer is a call of a tool, `final_answer` among them, so that weak models write valid ones), or auto: guided
    where the server says that it can hold a model to it, ours for one.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = ""  # the first that the server lists
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int | None = None
    calls: Literal["auto", "native", "guided"] = "auto"
    attempts: int = 4


class ScriptedTurn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the model says in one turn. `expect`: the last observation must contain this, or the run fails."""

    say: str = ""
    calls: tuple["ScriptedCall", ...] = ()
    call: "ScriptedCall | None" = None
    expect: str | None = None
    delay_s: float = 0.0  # as long as a model would think


class ScriptedCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`{{last}}` inside a string argument stands for the text of the last observation."""

    tool: str
    arguments: dict[str, Any] = {}


class ScriptSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="script"):
    turns: tuple[ScriptedTurn, ...]
    name: str = "scripted"


ModelSpec = EndpointSpec | ScriptSpec
