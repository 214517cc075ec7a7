"""The bodies of answers. A field that is UNSET is left out; None is sent as null, as OpenAI's clients expect
it.
"""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from mortice.serve.logprobs import ChatLogprobs, CompletionLogprobs
from mortice.serve.tally import Usage


class FunctionCall(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    function: FunctionCall
    type: str = "function"


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`reasoning` and `reasoning_content` say the same: clients look for one or the other."""

    role: str = "assistant"
    content: str | None = None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: str
    stop_reason: str | int | None = None
    weight_version: int
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None
    stop_reason: str | int | None = None
    weight_version: int  # of the weights that made the newest token
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType


class GeneratedToken(msgspec.Struct, frozen=True, kw_only=True):
    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


class GeneratedSequence(msgspec.Struct, frozen=True, kw_only=True):
    """`weight_versions[i]` made `token_ids[i]`. The stop token that ended it stands in `token_ids`."""

    index: int
    token_ids: list[int]
    weight_versions: list[int]
    finish_reason: str | None
    stop_token_id: int | None = None
    logprobs: list[GeneratedToken] | UnsetType = UNSET
    prompt_logprobs: list[GeneratedToken | None] | UnsetType = UNSET


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "generation"
    created: int
    model: str
    sequences: list[GeneratedSequence]
    usage: Usage


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "mortice"
    root: str
    parent: str | None = None
    max_model_len: int


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[Model]


class Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


class Detokenized(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str


class Health(msgspec.Struct, frozen=True, kw_only=True):
    status: str  # ready | not ready
    reason: str | None = None


class Version(msgspec.Struct, frozen=True, kw_only=True):
    version: str


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of an admin verb: what each worker said."""

    state: str
    workers: dict[str, Any] = {}
