"""The Lark grammar of an answer that may reason first and call tools.

Marks such as `<tool_call>` are one token in some vocabularies and spelled out in others. llguidance keeps
tokens of that shape apart from text, so a mark that is one token stands in the grammar as that token, and
free text must name the other such tokens that it may hold.
"""

import json
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from mortice.text.tool_choice import Function, ToolChoice

OPEN, CLOSE = "<tool_call>", "</tool_call>"
THINK, END_THINK = "<think>", "</think>"
MAX_CALLS = 16  # calls in one answer, where a call must come

Reasoning = Literal["none", "open", "maybe"]


class TokenTags(msgspec.Struct, frozen=True):
    """How a vocabulary spells the marks that grammars speak of."""

    single: dict[str, int] = {}  # of OPEN, CLOSE, THINK, END_THINK: those that are one token each
    free: tuple[int, ...] = ()  # other tokens apart from text that may stand in running text


def call_grammar(
    choice: ToolChoice | None,
    *,
    has_answer: bool,
    reasoning: Reasoning,
    tags: TokenTags,
    schema_of: Callable[[Function], dict[str, Any]],
) -> str:
    """Lark text. `has_answer`: there is a grammar named "answer" for the text of the answer.

    `schema_of` gives the schema under which a function's arguments are written.
    """
    rules = [
        "%llguidance {}",
        f"start: {_start(reasoning)}",
        f"body: {_body(choice, has_answer)}",
        *_text(tags),
        *_think(reasoning, tags),
    ]
    if has_answer and not (choice and choice.required):
        rules.append("answer: @answer")
    if choice:
        rules += _calls(choice, tags, schema_of)
    return "\n".join(rules)


def _start(reasoning: Reasoning) -> str:
    return {"none": "body", "open": 'think "\\n\\n"? body', "maybe": 'body | opened think "\\n\\n"? body'}[
        reasoning
    ]


def _body(choice: ToolChoice | None, has_answer: bool) -> str:
    if choice is None:
        return "answer"
    if choice.required:
        return "calls"
    if has_answer:
        return "calls | answer"
    return "free | late_call" if choice.single else "late_call* free"


def _text(tags: TokenTags) -> list[str]:
    """`text` runs within reasoning, `free` outside it, where a model may also reason unasked."""
    thinking = tuple(index for mark, index in tags.single.items() if mark in (THINK, END_THINK))
    rules = ["TEXT: /(.|\\n)+/"]
    for name, ids in (("text", tags.free), ("free", tags.free + thinking)):
        rules.append(f"{name}: (TEXT | <[{','.join(map(str, sorted(ids)))}]>)*" if ids else f"{name}: TEXT?")
    return rules


def _think(reasoning: Reasoning, tags: TokenTags) -> list[str]:
    if reasoning == "none":
        return []
    rules = [f"opened: {_mark(THINK, tags)}"] if reasoning == "maybe" else []
    if END_THINK in tags.single:
        return [*rules, f"think: text {END_THINK}"]
    return [*rules, f"think[lazy]: /(.|\\n)*/ {json.dumps(END_THINK)}"]


def _calls(choice: ToolChoice, tags: TokenTags, schema_of: Callable[[Function], dict[str, Any]]) -> list[str]:
    more = "" if choice.single else f' ("\\n" call){{0,{MAX_CALLS - 1}}}'
    late = [f"late_open[lazy]: /(.|\\n)*/ {json.dumps(OPEN)}", "late_call: late_open function"]
    if OPEN in tags.single:
        late[1] += f" | free {OPEN} function"
    rules = [
        f"calls: call{more}",
        f"call: {_mark(OPEN, tags)} function",
        *late,
        "function: " + " | ".join(f"function_{index}" for index in range(len(choice.functions))),
    ]
    for index, function in enumerate(choice.functions):
        head = json.dumps(f'\n{{"name": {json.dumps(function.name)}, "arguments": ')
        rules.append(f'function_{index}: {head} arguments_{index} "}}\\n" {_mark(CLOSE, tags)}')
        rules.append(f"arguments_{index}: %json {json.dumps(schema_of(function))}")
    return rules


def _mark(mark: str, tags: TokenTags) -> str:
    return mark if mark in tags.single else json.dumps(mark)
