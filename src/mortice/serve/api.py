"""The bodies of requests, field by field. `fields.py` says what becomes of each; openapi.py shows them to
clients.

A field that is absent or null has its default. Ranges that depend on the model are checked in `sampling.py`.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mortice.specs.sampling import MAX_LOGPROBS

Json = dict[str, Any]
Count = Annotated[int, Meta(ge=0, le=1 << 24)]
Positive = Annotated[int, Meta(ge=1, le=1 << 24)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Repetition = Annotated[float, Meta(gt=0, le=10)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
TopLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class _Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    pass


class StreamOptions(_Body, kw_only=True, frozen=True):
    include_usage: bool | None = None  # a last chunk with the usage and no choices
    continuous_usage_stats: bool | None = None  # usage on every chunk


class ResponseFormat(_Body, kw_only=True, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Json | None = None  # {name, schema, strict}


class Sampling(_Body, kw_only=True, frozen=True):
    """What both text routes and /generate share. The order of the chain stands in specs/sampling.py."""

    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 24)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Repetition | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    min_tokens: Count | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: TopLogprobs | None = None
    n: Annotated[int, Meta(ge=1, le=1 << 16)] | None = None
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] | None = None
    cache_salt: Name | None = None
    request_id: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class TextSampling(Sampling, kw_only=True, frozen=True):
    """What both text routes share."""

    model: str | None = None
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: list[str] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Json | None = None
    guided_json: Json | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    return_token_ids: bool | None = None
    user: str | None = None


class ChatRequest(TextSampling, kw_only=True, frozen=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Json], Meta(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Json | None = None
    metadata: Json | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class CompletionRequest(TextSampling, kw_only=True, frozen=True):
    """POST /v1/completions. `prompt`: text, texts, token ids, or lists of token ids."""

    prompt: str | list[str | int | list[int]]
    max_tokens: Count | None = None
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None


class GenerateRequest(Sampling, kw_only=True, frozen=True):
    """POST /generate: token ids in, token ids out."""

    token_ids: Annotated[list[int], Meta(min_length=1)]
    model: str | None = None  # an adapter's name, or the model's
    max_tokens: Positive | None = None
    logprobs: TopLogprobs | None = None


class ReasoningOptions(_Body, kw_only=True, frozen=True):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextFormat(_Body, kw_only=True, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: Json | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(_Body, kw_only=True, frozen=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesStreamOptions(_Body, kw_only=True, frozen=True):
    include_obfuscation: bool | None = None


class ResponsesRequest(_Body, kw_only=True, frozen=True):
    """POST /v1/responses"""

    input: str | list[Json]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 24)] | None = None
    min_p: Fraction | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    top_logprobs: TopLogprobs | None = None
    include: list[str] | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    chat_template_kwargs: Json | None = None
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] | None = None
    cache_salt: Name | None = None
    request_id: Name | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class TokenizeRequest(_Body, kw_only=True, frozen=True):
    """POST /tokenize: `prompt`, or `messages` as the chat route takes them."""

    prompt: str | None = None
    messages: list[Json] | None = None
    tools: list[Json] | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Json | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(_Body, kw_only=True, frozen=True):
    """POST /detokenize"""

    tokens: list[int]
    model: str | None = None
    skip_special_tokens: bool | None = None


class LoadAdapterRequest(_Body, kw_only=True, frozen=True):
    """POST /v1/load_lora_adapter"""

    lora_name: Name
    lora_path: Annotated[str, Meta(min_length=1)]


class UnloadAdapterRequest(_Body, kw_only=True, frozen=True):
    """POST /v1/unload_lora_adapter"""

    lora_name: Name


class AdminRequest(_Body, kw_only=True, frozen=True):
    """POST /admin/{pause,resume,reset_prefix_cache,check_integrity,drain}; the body may be absent."""

    worker_id: str | None = None


class RolesRequest(_Body, kw_only=True, frozen=True):
    """POST /admin/roles: one worker's `role`, or a division of all of them."""

    worker_id: str | None = None
    role: Literal["prefill", "decode", "mixed"] | None = None
    prefill: Annotated[int, Meta(ge=0, le=4096)] | None = None
    decode: Annotated[int, Meta(ge=0, le=4096)] | None = None
    mixed: Annotated[int, Meta(ge=0, le=4096)] | None = None


class SleepRequest(_Body, kw_only=True, frozen=True):
    """POST /admin/sleep: level 1 keeps the weights on the host, 2 drops them."""

    worker_id: str | None = None
    level: Annotated[int, Meta(ge=1, le=2)] | None = None


class WeightsRequest(_Body, kw_only=True, frozen=True):
    """POST /admin/weights: load weights from a path and give them a version."""

    path: Annotated[str, Meta(min_length=1)]
    version: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
