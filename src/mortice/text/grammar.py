"""One grammar for one request: the form of its answer, the tools it may or must call, the thought before it.

The grammar is llguidance's, as JSON: a main Lark grammar that says what may follow what, and one grammar for
the answer. JSON is written in one fixed way (", " and ": " and no other whitespace), so that a weak model
cannot walk in circles of blanks. A tool call is written in the Hermes form

    <tool_call>
    {"name": "f", "arguments": {...}}
    </tool_call>

where the arguments satisfy the function's parameters. Where calls are free to come or not, text runs
unhindered up to `<tool_call>` and from there on it is held to the form.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from mortice.specs.errors import RequestError
from mortice.text.call_grammar import CLOSE, END_THINK, OPEN, THINK, TokenTags, call_grammar
from mortice.text.calls import GrammarInput
from mortice.text.tool_choice import Function, ToolChoice, read_tool_choice

MAX_CHOICES = 4096
_JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def token_tags(tokenizer: LLTokenizer, added: Mapping[str, int], eos_token_ids: Collection[int]) -> TokenTags:
    """How a vocabulary spells marks. `added`: its added tokens by text. Free text may hold any token."""
    apart = {text: index for text, index in added.items() if tokenizer.is_special_token(index)}
    single = {text: index for text, index in apart.items() if text in (OPEN, CLOSE, THINK, END_THINK)}
    free = (index for text, index in apart.items() if text not in single and index not in eos_token_ids)
    return TokenTags(single, tuple(sorted(free)))


def grammar_for(request: GrammarInput, tags: TokenTags | None = None) -> str | None:
    """The grammar the output must match, None where it is free.

    Raises RequestError naming the field for a constraint that is malformed. Whether a schema or expression
    compiles is found out by `check_grammar`.
    """
    answer = _answer(request)
    choice = read_tool_choice(request.tools, request.tool_choice, request.parallel_tool_calls)
    if answer is None and choice is None:
        return None
    if choice is None and request.reasoning == "none":
        return json.dumps({"grammars": [answer]})
    main = call_grammar(
        choice,
        has_answer=answer is not None,
        reasoning=request.reasoning,
        tags=tags or TokenTags(),
        schema_of=lambda function: _with_form(function.parameters, _lenient(function, choice)),
    )
    grammars: list[dict[str, Any]] = [{"name": "main", "lark_grammar": main}]
    if answer is not None and not (choice and choice.required):
        grammars.append({"name": "answer", **answer})
    return json.dumps({"grammars": grammars})


def check_grammar(request: GrammarInput, tokenizer: LLTokenizer, tags: TokenTags) -> str | None:
    """As `grammar_for`, and compiled once for this vocabulary. May run long on hostile input.

    Raises RequestError with llguidance's message and the field whose schema or expression is at fault.
    """
    grammar = grammar_for(request, tags)
    if grammar is None:
        return None
    place = "tools" if request.tools else _place(request)
    try:
        _compile(grammar, tokenizer, place)
    except RequestError:
        for part_place, part in _parts(request):
            _compile(json.dumps({"grammars": [part]}), tokenizer, part_place)
        raise  # each part is right by itself: together they are too much
    return grammar


def _parts(request: GrammarInput) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the user wrote, each with its field: the parameters of tools, the form of the answer."""
    choice = read_tool_choice(request.tools, request.tool_choice, request.parallel_tool_calls)
    for function in choice.functions if choice else ():
        yield function.place, {"json_schema": _with_form(function.parameters, _lenient(function, choice))}
    answer = _answer(request)
    if answer is not None and not (choice and choice.required):
        yield _place(request), answer


def new_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher at the start of `grammar`. Raises RequestError (param "grammar") if it does not compile."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise RequestError(_first_line(matcher.get_error()), param="grammar")
    return matcher


def _compile(grammar: str, tokenizer: LLTokenizer, place: str) -> None:
    try:
        matcher = new_matcher(tokenizer, grammar)
    except RequestError as error:
        raise RequestError(f"{place} cannot be compiled: {error.message}", param=place) from error
    matcher.compute_bitmask()
    said = matcher.get_error()
    if "NoExtension" in said:
        raise RequestError(f"{place} cannot be satisfied by any text", param=place)
    if said:
        raise RequestError(f"{place} is too complex: {_first_line(said)}", param=place)


def _first_line(message: str) -> str:
    """What is wrong, without the excerpt of the compiled grammar that llguidance appends."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("error:")]
    return " ".join(dict.fromkeys([*lines[:1], *causes]))[:500] or "unknown error"


# --- the answer: response_format and the structured options
# ---------------------------------------------------------


def _constraints(request: GrammarInput) -> dict[str, tuple[str, Any]]:
    """By field of the request: the kind of its constraint and the value."""
    found: dict[str, tuple[str, Any]] = {}
    for kind in ("json", "regex", "choice", "grammar"):
        value = getattr(request, f"guided_{kind}")
        if value is not None:
            found[f"guided_{kind}"] = (kind, value)
    for kind, value in (request.structured_outputs or {}).items():
        place = f"structured_outputs.{kind}"
        if kind not in ("json", "regex", "choice", "grammar", "json_object"):
            raise RequestError(f"structured_outputs has no option {kind!r} here", param=place)
        if value is not None and value is not False:
            found[place] = (kind, value)
    kind = _format_kind(request.response_format)
    if kind != "text":
        found["response_format"] = (kind, request.response_format)
    if len(found) > 1:
        names = " and ".join(found)
        raise RequestError(f"{names} bind the same answer: give one of them", param=list(found)[-1])
    return found


def _format_kind(response_format: dict[str, Any] | None) -> str:
    kind = "text" if response_format is None else response_format.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise RequestError(
            f"response_format.type must be text, json_object or json_schema, not {kind!r}",
            param="response_format.type",
        )
    return str(kind)


def _place(request: GrammarInput) -> str:
    return next(iter(_constraints(request)), "response_format")


def _answer(request: GrammarInput) -> dict[str, Any] | None:
    """An entry of llguidance's list of grammars."""
    for place, (kind, value) in _constraints(request).items():
        answer: dict[str, Any] = _ANSWERS[kind](value, place)
        return answer
    return None


def _schema_answer(schema: Any, place: str, lenient: bool = False) -> dict[str, Any]:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise RequestError(f"{place} is not JSON: {error}", param=place) from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise RequestError(f"{place} must be a JSON schema, an object", param=place)
    return {"json_schema": _with_form(schema, lenient)}


def _format_answer(response_format: dict[str, Any], place: str) -> dict[str, Any]:
    body = response_format.get("json_schema", response_format)
    if not isinstance(body, dict) or body.get("schema") is None:
        raise RequestError("response_format of type json_schema needs json_schema.schema", param=place)
    return _schema_answer(body["schema"], place, lenient=body.get("strict") is not True)


def _regex_answer(regex: Any, place: str) -> dict[str, Any]:
    if not isinstance(regex, str):
        raise RequestError(f"{place} must be a string", param=place)
    compiled = json.loads(LLMatcher.grammar_from_regex(regex))  # it escapes what Lark would misread
    return {"lark_grammar": compiled["grammars"][0]["lark_grammar"]}


def _choice_answer(choices: Any, place: str) -> dict[str, Any]:
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise RequestError(f"{place} must be a list of non-empty strings", param=place)
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise RequestError(f"{place} must hold 1 to {MAX_CHOICES} strings, not {len(choices)}", param=place)
    return {"lark_grammar": "start: " + " | ".join(json.dumps(choice) for choice in dict.fromkeys(choices))}


def _grammar_answer(grammar: Any, place: str) -> dict[str, Any]:
    """Lark as it stands; GBNF (llama.cpp's EBNF) rewritten as Lark."""
    if not isinstance(grammar, str) or not grammar.strip():
        raise RequestError(f"{place} must be a grammar, Lark or GBNF", param=place)
    try:
        return {"lark_grammar": any_to_lark(grammar)}
    except Exception as error:  # the converter raises bare Exception for a grammar it cannot read
        raise RequestError(f"{place} is neither Lark nor GBNF: {error}", param=place) from error


_ANSWERS: dict[str, Any] = {
    "json": _schema_answer,
    "json_object": lambda value, place: _schema_answer({"type": "object"}, place),
    "json_schema": _format_answer,
    "regex": _regex_answer,
    "choice": _choice_answer,
    "grammar": _grammar_answer,
}


def _with_form(schema: dict[str, Any], lenient: bool) -> dict[str, Any]:
    return {**schema, "x-guidance": {**_JSON_FORM, "lenient": lenient}}


def _lenient(function: Function, choice: ToolChoice | None) -> bool:
    """Where calls are free, a keyword that cannot be enforced is passed over instead of refusing the
    request."""
    return choice is not None and not choice.required and not function.strict
