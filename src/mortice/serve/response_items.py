"""The Responses API's input items, and the chat they stand for."""

from typing import Any

from mortice.specs.errors import RequestError

Json = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")


def input_items(given: str | list[Json]) -> list[Json]:
    """The input as a list of items. A bare text is what the user says."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return given


def as_messages(instructions: str | None, items: list[Json]) -> list[Json]:
    """Chat messages of the items. Raises RequestError naming the first item that cannot be shown to the
    model.
    """
    messages: list[Json] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    thought = ""
    for number, item in enumerate(items):
        place = f"input[{number}]"
        kind = item.get("type", "message")
        if kind == "reasoning":
            thought += _thought(item)
        elif kind == "message":
            messages.append(_message(item, place))
        elif kind == "function_call":
            _add_call(messages, item, place)
        elif kind == "function_call_output":
            messages.append(_output(item, place))
        else:
            raise RequestError(f"items of type {kind!r} are not supported", param=f"{place}.type")
        if thought and kind in ("message", "function_call") and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = thought
            thought = ""
    if not messages:
        raise RequestError("input is empty", param="input")
    return messages


def _message(item: Json, place: str) -> Json:
    role = item.get("role")
    if role not in _ROLES:
        raise RequestError(f"role must be one of {', '.join(_ROLES)}", param=f"{place}.role")
    if not isinstance(item.get("content"), str | list):
        raise RequestError("content must be a string or a list of parts", param=f"{place}.content")
    return {"role": role, "content": item["content"]}


def _add_call(messages: list[Json], item: Json, place: str) -> None:
    """Calls made in one breath belong to one assistant message."""
    function = {name: _text(item, name, place) for name in ("name", "arguments")}
    call = {"id": _text(item, "call_id", place), "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _output(item: Json, place: str) -> Json:
    output = item.get("output")
    if not isinstance(output, str | list):
        raise RequestError("output must be a string or a list of parts", param=f"{place}.output")
    return {"role": "tool", "tool_call_id": _text(item, "call_id", place), "content": output}


def _text(item: Json, name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a string", param=f"{place}.{name}")
    return value


def _thought(item: Json) -> str:
    parts = item.get("content") or []
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def chat_tools(tools: list[Json] | None) -> list[Json] | None:
    """Tools in the form of chat completions, which templates know. Other kinds pass, to be refused by
    type.
    """
    if tools is None:
        return None
    return [
        {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
        if tool.get("type") == "function" and "function" not in tool
        else tool
        for tool in tools
    ]
