"""A tool: what a model may call, and what is known of its effects. What is not known is taken for the worst."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, get_type_hints

import msgspec

from mortice.agent.history import File
from mortice.specs.errors import RequestError

Effect = Literal["pure", "read", "write_local", "write_external"]
Idempotency = Literal["natural", "keyed", "none"]


class OnProgress(Protocol):
    async def __call__(self, progress: float, total: float | None, message: str | None) -> None: ...


class CallContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a running tool may know of its call. `key` is the same whenever this step is done again."""

    run_id: str
    turn: int
    index: int
    key: str
    timeout_s: float
    on_progress: OnProgress | None = None


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool gives back. `is_error`: the model should read the text and do better."""

    text: str
    is_error: bool = False
    files: tuple[File, ...] = ()
    sandbox_seconds: float = 0.0
    changed: tuple[str, ...] = ()
    epoch: str | None = None
    strength: str | None = None


class ToolError(Exception):
    """Raised by a tool; its message is for the model."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    description: str
    parameters: dict[str, Any]  # JSON Schema 2020-12 of the arguments, an object
    run: Callable[[dict[str, Any], CallContext], Awaitable[Output]]
    effect: Effect = "write_external"
    idempotency: Idempotency = "none"
    timeout_s: float = 60.0
    origin: str = "function"  # function | sandbox | agent | mcp:SERVER
    untrusted: bool = True  # may its output have been written by a stranger?
    approve: bool = False  # ask a human before each call
    agent: str | None = None  # name of the sub-agent that the call runs
    one_time: tuple[str, ...] = ()  # arguments whose value may be used once and never again, on any branch


def spec_of(tool: Tool) -> dict[str, Any]:
    """As OpenAI's chat API takes it."""
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }


def tool(
    *,
    effect: Effect = "write_external",
    idempotency: Idempotency = "none",
    timeout_s: float = 60.0,
    approve: bool = False,
    untrusted: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that says what a function does to the world. A function without it is taken for `write_external`."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        settings = {"effect": effect, "idempotency": idempotency, "timeout_s": timeout_s, "approve": approve}
        function.mortice_tool = settings | {"untrusted": untrusted}  # type: ignore[attr-defined]
        return function

    return mark


def from_function(function: Callable[..., Any]) -> Tool:
    """A tool of a Python function: name, docstring and typed parameters become the model's description of it. A
    parameter named `idempotency_key` is filled in by the harness. Sync functions run on a thread.
    """
    name = function.__name__
    keyed = "idempotency_key" in inspect.signature(function).parameters
    settings: dict[str, Any] = dict(getattr(function, "mortice_tool", {"untrusted": False}))
    if keyed:
        settings["idempotency"] = "keyed"

    async def run(arguments: dict[str, Any], context: CallContext) -> Output:
        extra = {"idempotency_key": context.key} if keyed else {}
        if inspect.iscoroutinefunction(function):
            value = await function(**arguments, **extra)
        else:
            value = await asyncio.to_thread(function, **arguments, **extra)
        if isinstance(value, Output):
            return value
        return Output(text=value if isinstance(value, str) else msgspec.json.encode(value).decode())

    return Tool(
        name=name,
        description=inspect.getdoc(function) or name,
        parameters=_schema(function),
        run=run,
        **settings,
    )


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(function)
    names, types_, required = [], [], []
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "idempotency_key":
            continue
        if name not in hints or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RequestError(f"tool {function.__name__}: parameter {name} needs a type", param="tools")
        names.append(name)
        types_.append(hints[name])
        if parameter.default is parameter.empty:
            required.append(name)
    schemas, definitions = msgspec.json.schema_components(types_, ref_template="#/$defs/{name}")
    schema: dict[str, Any] = {
        "type": "object",
        "properties": dict(zip(names, schemas, strict=True)),
        "required": required,
        "additionalProperties": False,
    }
    return schema | ({"$defs": definitions} if definitions else {})
