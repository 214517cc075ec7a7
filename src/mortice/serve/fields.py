"""What becomes of every request field: honoured, accepted without effect, or refused by name. Never a
fourth, silent one.

docs/api-fields.md is generated from this table (`python -m mortice.serve.fields`); tests compare it with the
structs of api.py. A field in neither is refused as unknown.
"""

from typing import Any, Literal

import msgspec

from mortice.serve.api import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerateRequest,
    ResponsesRequest,
    TokenizeRequest,
)

ROUTES: dict[str, type[msgspec.Struct]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "responses": ResponsesRequest,
    "generate": GenerateRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}

_TEXT = ("chat", "completions")
_SAMPLING = ("chat", "completions", "generate")
_CHAT = ("chat",)
_COMPLETIONS = ("completions",)
_RESPONSES = ("responses",)
_TALK = ("chat", "responses")
_MODEL = ("chat", "completions", "responses", "generate")

Status = Literal["honoured", "no effect", "refused"]


class Field(msgspec.Struct, frozen=True):
    """One row. `neutral`: values of a refused field that ask for nothing, so they are accepted."""

    name: str
    status: Status
    routes: tuple[str, ...]
    note: str
    neutral: tuple[Any, ...] = ()


def _yes(name: str, routes: tuple[str, ...], note: str) -> Field:
    return Field(name, "honoured", routes, note)


def _noop(name: str, routes: tuple[str, ...], note: str) -> Field:
    return Field(name, "no effect", routes, note)


def _no(name: str, routes: tuple[str, ...], note: str, *neutral: Any) -> Field:
    return Field(name, "refused", routes, note, neutral)


TABLE: tuple[Field, ...] = (
    _yes("model", (*_MODEL, "tokenize", "detokenize"), "the served name or an adapter's; absent: the model"),
    _yes("messages", ("chat", "tokenize"), "text only; other content parts are refused by type"),
    _yes("prompt", ("completions", "tokenize"), "completions: text, texts, token ids, or lists of token ids"),
    _yes("input", _RESPONSES, "text, or messages, function calls and their outputs"),
    _yes("token_ids", ("generate",), "the prompt"),
    _yes("tokens", ("detokenize",), "token ids"),
    _yes("max_tokens", _SAMPLING, "default: what is left of the context; 0 with echo scores the prompt only"),
    _yes("max_completion_tokens", _CHAT, "newer name of max_tokens; it wins"),
    _yes("max_output_tokens", _RESPONSES, "default: what is left of the context"),
    _yes("min_tokens", _SAMPLING, "no end before so many tokens"),
    _yes(
        "temperature",
        _MODEL,
        "0 to 2, default 1; 0 takes the most probable token, the lowest id among equals",
    ),
    _yes("top_p", _MODEL, "above 0 to 1, default 1"),
    _yes("top_k", _MODEL, "0 or -1: off"),
    _yes("min_p", _MODEL, "0 to 1, default 0"),
    _yes("repetition_penalty", _SAMPLING, "above 0 to 10, over prompt and output"),
    _yes("presence_penalty", _SAMPLING, "-2 to 2, over the output"),
    _yes("frequency_penalty", _SAMPLING, "-2 to 2, over the output"),
    _yes("seed", _MODEL, "absent: drawn; the same seed gives the same text whatever the batch"),
    _yes("n", _SAMPLING, "sequences from one prefill; their seeds differ by index"),
    _yes("stop", (*_TEXT, "responses"), "a string or up to four"),
    _yes("include_stop_str_in_output", _TEXT, "show the stop string or stop token that ended the text"),
    _yes("stop_token_ids", _SAMPLING, "token ids that end the text"),
    _yes("ignore_eos", _MODEL, "go on past the end-of-sequence token"),
    _yes("skip_special_tokens", (*_TEXT, "detokenize"), "default true; detokenize: default false"),
    _yes("logit_bias", _SAMPLING, "-100 to 100 by token id"),
    _yes("allowed_token_ids", _SAMPLING, "only these may come"),
    _yes("bad_words", _TEXT, "strings that must not come, by their tokens"),
    _yes("logprobs", _SAMPLING, "natural logs before the sampling chain; chat: true or false, else how many"),
    _yes("top_logprobs", _TALK, "0 to 20; chat: with logprobs"),
    _yes("prompt_logprobs", _SAMPLING, "0 to 20 for each prompt token, in `prompt_logprobs`"),
    _yes("response_format", _TEXT, "text, json_object or json_schema"),
    _yes("guided_json", _TEXT, "a JSON schema that the answer satisfies"),
    _yes("guided_regex", _TEXT, "a regular expression that the answer matches"),
    _yes("guided_choice", _TEXT, "the answer is one of these strings"),
    _yes("guided_grammar", _TEXT, "a grammar, Lark or GBNF, that the answer matches"),
    _yes(
        "structured_outputs", _TEXT, "the four above in one object: json, regex, choice, grammar, json_object"
    ),
    _yes("text", _RESPONSES, "format: text, json_object or json_schema"),
    _yes("stream", _MODEL, "server-sent events"),
    _yes("stream_options", _SAMPLING, "include_usage, continuous_usage_stats"),
    _noop("stream_options", _RESPONSES, "include_obfuscation: events are never padded"),
    _yes("tools", (*_TALK, "tokenize"), "functions; other kinds of tools are refused by type"),
    _yes("tool_choice", _TALK, "none, auto, required, a function's name, allowed_tools"),
    _yes("parallel_tool_calls", _TALK, "false: at most one call"),
    _yes("reasoning_effort", _CHAT, "given to the chat template; `none` asks it not to think"),
    _yes("reasoning", _RESPONSES, "effort, given to the chat template; summaries are refused"),
    _yes("include_reasoning", _CHAT, "false: reasoning is not sent"),
    _yes("add_generation_prompt", ("chat", "tokenize"), "default true, false with continue_final_message"),
    _yes("continue_final_message", ("chat", "tokenize"), "go on with the last message"),
    _yes("chat_template_kwargs", (*_TALK, "tokenize"), "variables of the chat template"),
    _yes("add_special_tokens", ("completions", "tokenize"), "default true for text prompts"),
    _yes("echo", _COMPLETIONS, "the prompt stands before the text"),
    _yes("return_token_ids", _TEXT, "token ids of prompt and text in `prompt_token_ids` and `token_ids`"),
    _yes("return_token_strs", ("tokenize",), "each token as text"),
    _yes("priority", _MODEL, "larger goes first"),
    _yes("cache_salt", _MODEL, "cached blocks are shared only among requests with the same salt"),
    _yes("request_id", _MODEL, "part of the answer's id"),
    _yes("instructions", _RESPONSES, "a system message before the input; not inherited"),
    _yes("previous_response_id", _RESPONSES, "go on from a stored response"),
    _yes("store", _RESPONSES, "default true where the server has a store"),
    _noop("store", _CHAT, "chats are not stored"),
    _yes("background", _RESPONSES, "answer at once, to be fetched later; needs the store"),
    _yes("include", _RESPONSES, "message.output_text.logprobs; others are refused"),
    _yes("truncation", _RESPONSES, "disabled; auto is refused"),
    _yes("metadata", _RESPONSES, "given back with the response"),
    _noop("metadata", _CHAT, "nothing is stored that it could describe"),
    _noop("user", (*_TALK, "completions"), "for the operators of hosted services"),
    _noop("safety_identifier", _TALK, "for the operators of hosted services"),
    _noop("prompt_cache_key", _TALK, "caching needs no hint here"),
    _noop("service_tier", _TALK, "there is one tier"),
    _noop("verbosity", _CHAT, "a hint that the model does not take"),
    _no("suffix", _COMPLETIONS, "filling in the middle is not supported", ""),
    _no("best_of", _COMPLETIONS, "use n", 1),
    _no("functions", _CHAT, "use tools", []),
    _no("function_call", _CHAT, "use tool_choice", "none"),
    _no("audio", _CHAT, "this model writes text"),
    _no("modalities", _TALK, "this model writes text", ["text"]),
    _no("prediction", _CHAT, "predicted outputs are not supported"),
    _no("web_search_options", _CHAT, "there is no web search"),
    _no("prompt", _RESPONSES, "stored prompts are not supported"),
    _no("conversation", _RESPONSES, "use previous_response_id"),
    _no("context_management", _RESPONSES, "nothing is compacted", []),
    _no("max_tool_calls", _RESPONSES, "the server calls no tools itself"),
    _no("prompt_cache_retention", _TALK, "blocks are evicted as space is needed"),
    _no("prompt_cache_options", _TALK, "blocks are evicted as space is needed"),
    _no("use_beam_search", _SAMPLING, "beam search is not supported", False),
    _no("length_penalty", _SAMPLING, "beam search is not supported", 1.0),
    _no("early_stopping", _SAMPLING, "beam search is not supported", False),
    _no("truncate_prompt_tokens", _TEXT, "a prompt that is too long is refused"),
    _no("thinking_token_budget", _CHAT, "thinking ends when the model ends it"),
    _no("spaces_between_special_tokens", _TEXT, "tokens are joined as the tokenizer spells them", True),
    _no("documents", _CHAT, "use chat_template_kwargs", []),
    _no("chat_template", ("chat", "tokenize"), "the model's own template is used"),
    _no("mm_processor_kwargs", _TEXT, "this model reads text"),
    _no("prompt_embeds", _COMPLETIONS, "prompts are text or token ids"),
    _no("kv_transfer_params", _MODEL, "the cluster moves KV itself"),
    _no("return_routed_experts", _MODEL, "routing is not recorded", False),
    _no("logits_processors", _SAMPLING, "no code of users runs here", []),
    _no("lora_path", _MODEL, "load the adapter by /v1/load_lora_adapter, then name it in model"),
    _no("lora_request", _MODEL, "name the adapter in model"),
)

BY_ROUTE: dict[str, dict[str, Field]] = {
    route: {field.name: field for field in TABLE if route in field.routes} for route in ROUTES
}


def as_markdown() -> str:
    """docs/api-fields.md."""
    lines = [
        "# Request fields",
        "",
        "What the server does with each field. A field not listed for a route is refused with status 400 and",
        "its name in `param`. Generated from `mortice/serve/fields.py`.",
    ]
    titles = (
        ("honoured", "Honoured"),
        ("no effect", "Accepted without effect"),
        ("refused", "Refused with 400"),
    )
    for status, title in titles:
        lines += ["", f"## {title}", "", "| field | routes | |", "| --- | --- | --- |"]
        for field in sorted(TABLE, key=lambda f: f.name):
            if field.status == status:
                neutral = ", ".join(f"`{msgspec.json.encode(v).decode()}`" for v in field.neutral)
                note = field.note + (f"; {neutral} is accepted" if neutral else "")
                lines.append(f"| `{field.name}` | {', '.join(field.routes)} | {note} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
