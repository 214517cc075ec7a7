"""What the edge and the text worker say to each other: msgpack in frames of a length (u32, little endian) and
a body."""

import struct
from typing import Any

import msgspec

from mortice.text.call_grammar import Reasoning

FRAME = struct.Struct("<I")


class ChatInput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A chat as OpenAI's API gives it. `messages` and `tools` are the request's own, as plain JSON values."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None  # "none" hides the tools; other choices show them all
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = {}


class GrammarInput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields of a request that bind its output, as plain JSON values."""

    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None
    reasoning: Reasoning = "none"  # open: the prompt ends within <think>; maybe: the model may open it


class EncodeCall(msgspec.Struct, tag="encode", frozen=True):
    texts: list[str]
    add_special_tokens: bool


class RenderCall(msgspec.Struct, tag="render", frozen=True):
    chat: ChatInput


class GrammarCall(msgspec.Struct, tag="grammar", frozen=True):
    request: GrammarInput


class Ready(msgspec.Struct, tag="ready", frozen=True, kw_only=True):
    """First word of a worker: what the edge needs of the model to write text and to choose parsers."""

    token_bytes: list[bytes]
    special_ids: list[int]
    lead_space: bool
    special_texts: dict[str, int]
    eos_token_ids: list[int]
    chat_template: str | None
    tool_template: str | None


class Done(msgspec.Struct, tag="done", frozen=True, omit_defaults=True):
    ids: list[list[int]] = []
    grammar: str | None = None


class Failed(msgspec.Struct, tag="failed", frozen=True, omit_defaults=True):
    """The call is at fault; the worker goes on."""

    message: str
    param: str | None = None
    code: str | None = None


Call = EncodeCall | RenderCall | GrammarCall
Reply = Ready | Done | Failed
