"""All tools of one run, from where they come: Python functions, a sandbox, MCP servers, sub-agents. Opened at the first
act, so that replaying a run that has ended starts nothing.
"""

import importlib
import importlib.util
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

from mortice.agent.spec import AgentSpec
from mortice.agent.tool import CallContext, Output, Tool, from_function
from mortice.specs.errors import RequestError


class Source(Protocol):
    """Where tools come from. `drain` gives what has changed since it was last asked, in words."""

    async def refresh(self) -> None: ...

    def tools(self) -> list[Tool]: ...

    def drain(self) -> list[str]: ...


OpenSources = Callable[[AsyncExitStack], Awaitable[list[Source]]]


class Toolbox:
    """`open` once; `tools` at each turn, since servers change theirs. Names are unique: a second tool of a name is a
    RequestError where both are the user's, and left out with a notice where a server brought it.
    """

    def __init__(self, spec: AgentSpec, open_sources: OpenSources) -> None:
        self._spec = spec
        self._open_sources = open_sources
        self._sources: list[Source] = []
        self._own: list[Tool] = []
        self._stack = AsyncExitStack()
        self._opened = False
        self._notices: list[str] = []

    async def open(self) -> None:
        if self._opened:
            return
        self._own = [*own_tools(self._spec), *(_agent_tool(sub) for sub in self._spec.agents)]
        names = [tool.name for tool in self._own]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise RequestError(f"two tools have the name {twice}", param="tools")
        self._sources = await self._open_sources(self._stack)
        self._opened = True

    async def close(self) -> None:
        await self._stack.aclose()
        self._opened = False

    async def refresh(self) -> None:
        for source in self._sources:
            await source.refresh()

    def tools(self) -> list[Tool]:
        """In a stable order: prompts that begin alike are cached."""
        found = {tool.name: tool for tool in self._own}
        for source in self._sources:
            for tool in source.tools():
                if tool.name in found:
                    note = f"a second tool named {tool.name} (of {tool.origin}) was left out"
                    if note not in self._notices:
                        self._notices.append(note)
                    continue
                found[tool.name] = tool
        return list(found.values())

    def drain(self) -> list[str]:
        notices, self._notices = self._notices, []
        for source in self._sources:
            notices += source.drain()
        return notices


def own_tools(spec: AgentSpec) -> list[Tool]:
    return [from_function(load_function(name)) for name in spec.tools if name != "sandbox"]


def load_function(name: str) -> Callable[..., Any]:
    """`PATH.py:FUNCTION` or `MODULE:FUNCTION`. RequestError if there is none."""
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise RequestError(f"{name}: a tool is `sandbox`, PATH.py:FUNCTION or MODULE:FUNCTION", param="tools")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise RequestError(f"{place} has no function {attribute}", param="tools")
    return function  # type: ignore[no-any-return]


def _load_file(path: Path) -> Any:
    name = f"mortice_file_{path.stem}_{abs(hash(str(path)))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise RequestError(f"{path}: there is no such file", param="tools")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RequestError(f"{path}: {type(error).__name__}: {error}", param="tools") from error
    return module


def _load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RequestError(f"{name}: {error}", param="tools") from error


def _agent_tool(sub: AgentSpec) -> Tool:
    async def run(arguments: dict[str, Any], context: CallContext) -> Output:
        raise RuntimeError("a sub-agent is run by the loop, as a child")

    return Tool(
        name=sub.name,
        description=sub.description or f"Hand a task to the agent {sub.name}.",
        parameters={
            "type": "object",
            "properties": {"task": {"type": "string", "description": "The whole task, self-contained."}},
            "required": ["task"],
            "additionalProperties": False,
        },
        run=run,
        effect="read",  # what it does to the world is judged call by call, within it
        origin="agent",
        untrusted=bool(sub.mcp_servers) or "sandbox" in sub.tools,
        agent=sub.name,
    )
