"""What a request says of tools: which functions there are, which may be called and which must be."""

import re
from dataclasses import dataclass
from typing import Any

from mortice.specs.errors import RequestError

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """One callable tool."""

    name: str
    parameters: dict[str, Any]  # a JSON schema of an object
    strict: bool
    place: str  # where its parameters stand in the request, for messages


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`functions` may be called. `required`: a call must come. `single`: at most one may."""

    functions: tuple[Function, ...]
    required: bool
    single: bool


def read_tool_choice(
    tools: list[dict[str, Any]] | None,
    tool_choice: str | dict[str, Any] | None,
    parallel_tool_calls: bool = True,
) -> ToolChoice | None:
    """The choice a request makes, None where no tool may be called.

    Tools and choices are taken in the form of chat completions ({"type": "function", "function": {"name":
    ...}}) and in that of responses ({"type": "function", "name": ...}). Raises RequestError naming the field.
    """
    functions = _functions(tools or [])
    if tool_choice is None or tool_choice == "auto":
        return ToolChoice(functions, False, not parallel_tool_calls) if functions else None
    if tool_choice == "none":
        return None
    if not functions:
        raise RequestError("tool_choice asks for a call, but there are no tools", param="tool_choice")
    if tool_choice == "required":
        return ToolChoice(functions, True, not parallel_tool_calls)
    if not isinstance(tool_choice, dict):
        raise RequestError(
            f"tool_choice must be none, auto, required or an object, not {tool_choice!r}", param="tool_choice"
        )
    kind = tool_choice.get("type")
    if kind == "function":
        return ToolChoice(_named(functions, [tool_choice]), True, True)
    if kind == "allowed_tools":
        allowed = tool_choice.get("allowed_tools", tool_choice)
        if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
            raise RequestError("allowed_tools needs a list of tools", param="tool_choice")
        mode = allowed.get("mode", "auto")
        if mode not in ("auto", "required"):
            raise RequestError(
                f"the mode of allowed_tools is auto or required, not {mode!r}", param="tool_choice"
            )
        return ToolChoice(_named(functions, allowed["tools"]), mode == "required", not parallel_tool_calls)
    raise RequestError(f"tool_choice of type {kind!r} is not supported", param="tool_choice")


def _functions(tools: list[dict[str, Any]]) -> tuple[Function, ...]:
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"at most {MAX_TOOLS} tools, not {len(tools)}", param="tools")
    functions: dict[str, Function] = {}
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        if not isinstance(tool, dict) or tool.get("type", "function") != "function":
            raise RequestError("only tools of type function are supported", param=f"{place}.type")
        if "function" in tool:
            place, body = f"{place}.function", tool["function"]
        else:
            body = tool
        name = body.get("name") if isinstance(body, dict) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RequestError(
                "a function's name has 1 to 64 letters, digits, underscores, dots and dashes",
                param=f"{place}.name",
            )
        if name in functions:
            raise RequestError(f"two functions are named {name}", param=f"{place}.name")
        place = f"{place}.parameters"
        parameters = _object_schema(body.get("parameters"), place)
        functions[name] = Function(name, parameters, body.get("strict") is True, place)
    return tuple(functions.values())


def _object_schema(parameters: Any, place: str) -> dict[str, Any]:
    """Arguments are an object, also where the schema forgets to say so."""
    if parameters is None:
        return _NO_ARGUMENTS
    if not isinstance(parameters, dict):
        raise RequestError("parameters must be a JSON schema, an object", param=place)
    if parameters.get("type", "object") not in ("object", ["object"]):
        raise RequestError("arguments are an object: parameters must have type object", param=place)
    return {**parameters, "type": "object"}


def _named(functions: tuple[Function, ...], choices: list[Any]) -> tuple[Function, ...]:
    chosen = []
    for choice in choices:
        body = choice.get("function", choice) if isinstance(choice, dict) else {}
        name = body.get("name") if isinstance(body, dict) else None
        found = [function for function in functions if function.name == name]
        if not found:
            raise RequestError(
                f"tool_choice names {name!r}, which is not among the tools", param="tool_choice"
            )
        chosen += found
    if not chosen:
        raise RequestError("tool_choice allows no tool", param="tool_choice")
    return tuple(dict.fromkeys(chosen))
