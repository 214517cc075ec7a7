"""Chat templates: messages in, the prompt's text out.

Templates come with models and are programs, so they run in jinja's sandbox, and in the text worker where a
loop can be ended. What they may call is what model makers expect: `raise_exception`, `strftime_now`,
`tojson`, `generation` blocks, loop controls.
"""

import datetime
import json
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from mortice.specs.errors import RequestError
from mortice.text.calls import ChatInput
from mortice.text.load import TextModel

_MARK = "\ue000mortice continues here\ue000"  # private-use characters: no message holds it


def render_chat(model: TextModel, chat: ChatInput) -> str:
    """The prompt's text, special tokens included; encode it with add_special_tokens=False.

    Raises RequestError for a chat that the template refuses and for content that is no text.
    """
    tools = None if chat.tool_choice == "none" or not chat.tools else chat.tools
    source = model.tool_template if tools else model.chat_template
    if source is None:
        raise RequestError(
            "this model has no chat template: use completions, or a model made for chat", param="model"
        )
    if chat.continue_final_message and chat.add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other",
            param="continue_final_message",
        )
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(chat.messages)]
    if not messages:
        raise RequestError("messages must hold at least one message", param="messages")
    if "developer" not in source:
        for message in messages:
            message["role"] = "system" if message["role"] == "developer" else message["role"]
    if not _speaks_of_tools(source):
        messages = _without_tools(messages, tools)
    if chat.continue_final_message:
        if not messages[-1]["content"]:
            raise RequestError(
                "continue_final_message needs a last message with text", param="continue_final_message"
            )
        messages[-1] = {**messages[-1], "content": messages[-1]["content"] + _MARK}
    values = {
        **model.named_tokens,
        "add_generation_prompt": chat.add_generation_prompt,
        **_kwargs(chat.chat_template_kwargs),
        "messages": messages,
        "tools": tools,
        "documents": chat.chat_template_kwargs.get("documents"),
    }
    text = _render(source, values)
    return _cut_at_mark(text) if chat.continue_final_message else text


def _render(source: str, values: dict[str, Any]) -> str:
    template = _compile(source)
    try:
        return template.render(values)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        # A template is the model maker's program: with messages it did not foresee it may raise anything of
        # these.
        raise RequestError(f"the chat template refuses these messages: {error}", param="messages") from error


def _kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name in ("messages", "tools"):
        if name in kwargs:
            raise RequestError(
                f"chat_template_kwargs may not replace {name}", param=f"chat_template_kwargs.{name}"
            )
    return kwargs


def _cut_at_mark(text: str) -> str:
    at = text.rfind(_MARK)
    if at < 0:
        raise RequestError(
            "the chat template does not show the last message as it stands", param="continue_final_message"
        )
    return text[:at]


def _message(message: dict[str, Any], place: str) -> dict[str, Any]:
    """A copy that templates can use: content as one string, arguments of tool calls as objects."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError("a message must be an object with a role", param=place)
    copy = {**message, "content": _content(message.get("content"), f"{place}.content")}
    calls = message.get("tool_calls")
    if calls is None:
        return copy
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RequestError("tool_calls must be a list of objects", param=f"{place}.tool_calls")
    copy["tool_calls"] = [_tool_call(call) for call in calls]
    return copy


def _content(content: Any, place: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError("content must be a string or a list of parts", param=place)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise RequestError(
                f"content parts of type {kind!r} are not supported: this model reads text",
                param=f"{place}[{index}].type",
            )
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise RequestError("a text part must have a string in text", param=f"{place}[{index}].text")
        texts.append(text)
    return "\n".join(texts)


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call  # a model's own broken output, sent back to it: it may see what it wrote
    return {**call, "function": {**function, "arguments": arguments}}


def _speaks_of_tools(source: str) -> bool:
    return "tools" in source


def _without_tools(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> list[dict[str, Any]]:
    """The same chat for a template that knows no tools: they are told in words, in the Hermes form."""
    told = []
    for message in messages:
        if calls := message.get("tool_calls"):
            written = [f"<tool_call>\n{_dumps(_plain_call(call))}\n</tool_call>" for call in calls]
            message = {
                **message,
                "content": "\n".join([message["content"], *written] if message["content"] else written),
            }
        if message["role"] == "tool":
            message = {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
        told.append(message)
    if not tools:
        return told
    preamble = _TOOLS_PREAMBLE.format(tools="\n".join(_dumps(tool) for tool in tools))
    if told and told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{preamble}"}, *told[1:]]
    return [{"role": "system", "content": preamble}, *told]


_TOOLS_PREAMBLE = """You may call functions to help with the request.
Their signatures stand within <tools></tools>:
<tools>
{tools}
</tools>
For each call, answer with a JSON object within <tool_call></tool_call>:
<tool_call>
{{"name": <function name>, "arguments": <object of arguments>}}
</tool_call>"""


def _plain_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    return {"name": function.get("name"), "arguments": function.get("arguments")}


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant wrote, for training; rendering shows its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own attribute

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _dumps
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise RequestError(f"the model's chat template does not compile: {error}", param="model") from error


def _dumps(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout)
