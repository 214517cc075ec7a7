"""The host: many servers, their tools under one roof, each server under its own rules.

A tool is offered as `server__tool`. What it does to the world is what the user's rules say, never what its server says;
its text is pinned; its results are data of a stranger.
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import mcp_types as types
import msgspec

from mortice.agent.artifacts import MAX_BYTES, Artifacts
from mortice.agent.history import File
from mortice.agent.machine import Boxes
from mortice.agent.mcp.config import McpServer
from mortice.agent.mcp.connection import Connection, Gone
from mortice.agent.mcp.consent import Consent, Gate
from mortice.agent.mcp.login import Loopback, login
from mortice.agent.mcp.pins import Pins, digest, server_id, suspicion
from mortice.agent.model import Model
from mortice.agent.schema import Unchecked, check_schema
from mortice.agent.tool import CallContext, Output, Tool, ToolError
from mortice.specs.errors import RequestError

_NAME = re.compile(r"[^A-Za-z0-9_-]")
_MAX_NAME = 64


class McpHost:
    """`async with McpHost(...)`: connected to every server that can be reached; the others are a notice."""

    def __init__(
        self,
        servers: dict[str, McpServer],
        *,
        pins: Pins,
        artifacts: Artifacts,
        consent: Consent,
        model: Model | None = None,
        tokens: Path | None = None,
        transports: dict[str, Callable[[], Any]] | None = None,
        boxes: Callable[[], Awaitable[Boxes]] | None = None,
    ) -> None:
        self._pins = pins
        self._artifacts = artifacts
        self._notices: list[str] = []
        self._consent = consent
        self._tokens = tokens
        self._loopbacks: list[Loopback] = []
        self._connections = {
            name: Connection(
                name,
                server,
                Gate(name, server, consent, model),
                transport=(transports or {}).get(name),
                make_auth=partial(self._log_in, name, server) if server.login else None,
                boxes=boxes,
            )
            for name, server in servers.items()
        }
        self._tools: dict[str, list[Tool]] = {}
        self._busy = asyncio.Lock()

    async def __aenter__(self) -> "McpHost":
        await asyncio.gather(*(self._start(c) for c in self._connections.values()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(c.close() for c in self._connections.values()))
        for loopback in self._loopbacks:
            await loopback.close()

    async def _log_in(self, name: str, server: McpServer) -> httpx.Auth:
        if self._tokens is None:
            raise RequestError(f"{name}: there is no folder to keep tokens in", param="login")
        loopback = Loopback()
        self._loopbacks.append(loopback)
        path = self._tokens / f"{server_id(name, server).replace(':', '-')}.json"
        return await login(name, server, path, self._consent, loopback)

    @property
    def connections(self) -> dict[str, Connection]:
        return self._connections

    def tools(self) -> list[Tool]:
        """Of all servers, in the order of the document. A name that two tools would share is given to neither."""
        found = [tool for name in self._connections for tool in self._tools.get(name, ())]
        names = [tool.name for tool in found]
        twice = {name for name in names if names.count(name) > 1}
        for name in sorted(twice):
            self._note(f"two tools would be called {name}; neither is offered")
        return [tool for tool in found if tool.name not in twice]

    def drain(self) -> list[str]:
        notices, self._notices = self._notices, []
        return notices

    async def refresh(self) -> None:
        """Servers that said their tools changed are listed again."""
        async with self._busy:
            for connection in self._connections.values():
                if connection.changed.is_set():
                    try:
                        await connection.ask("tools/list", lambda _, c=connection: c.refresh())  # type: ignore[misc]
                    except (Gone, ToolError) as error:
                        self._note(str(error))
                        continue
                    self._admit(connection)
                    self._note(f"the tools of {connection.name} have changed")

    async def _start(self, connection: Connection) -> None:
        try:
            await connection.start()
        except Gone as error:
            self._note(f"the server {connection.name} cannot be reached: {error}")
            self._tools[connection.name] = []
            return
        self._admit(connection)

    def _admit(self, connection: Connection) -> None:
        """Apply the rules to what a server lists."""
        server, name = connection.server, connection.name
        identity = server_id(name, server)
        known = self._pins.known(identity)
        listed = {t.name: t for t in connection.tools if _allowed(t.name, server)}
        if known is None and not server.trusted:
            known = {t.name: digest(t) for t in connection.tools if suspicion(t) is None}
            self._pins.pin(identity, known)
        admitted = []
        for tool in listed.values():
            reason = None if server.trusted else _withheld(tool, known or {})
            if reason is None:
                try:
                    check_schema(tool.input_schema)
                except Unchecked as error:
                    reason = str(error)
            if reason is not None:
                self._note(f"the tool {tool.name} of {name} is withheld: {reason}")
                continue
            admitted.append(self._tool(connection, tool))
        capabilities = connection.client.server_capabilities
        if capabilities.resources is not None:
            admitted += _resource_tools(self, connection)
        if capabilities.prompts is not None:
            admitted.append(_prompt_tool(self, connection))
        self._tools[name] = admitted

    def _tool(self, connection: Connection, tool: types.Tool) -> Tool:
        server = connection.server

        async def run(arguments: dict[str, Any], context: CallContext) -> Output:
            read_only = server.effects.get(tool.name) in ("pure", "read")
            try:
                result = await connection.call_tool(tool.name, arguments, context.on_progress)
            except Gone as error:
                if error.began and not read_only:
                    text = f"{error}\nNobody knows whether {tool.name} took effect."
                    raise ToolError(text) from error
                await connection.start()
                self._admit(connection)
                result = await connection.call_tool(tool.name, arguments, context.on_progress)
            return self.output(connection, tool.name, result)

        return Tool(
            name=exposed(connection.name, tool.name),
            description=tool.description or tool.title or tool.name,
            parameters=tool.input_schema,
            run=run,
            effect=server.effects.get(tool.name, "write_external"),
            timeout_s=server.call_limit_s,
            origin=f"mcp:{connection.name}",
            untrusted=not server.trusted,
            approve=tool.name in server.approve,
        )

    def output(self, connection: Connection, name: str, result: types.CallToolResult) -> Output:
        """What the model reads; pictures, sound and blobs go to the artifact store."""
        texts, files = [], []
        size = 0
        for index, block in enumerate(result.content):
            text, file = self._block(block, f"{name}-{index}")
            size += len(text)
            if size > connection.server.max_result_bytes:
                raise ToolError(f"{connection.name}: the result of {name} is too large")
            texts.append(text)
            if file is not None:
                files.append(file)
        if not texts and result.structured_content is not None:
            texts.append(msgspec.json.encode(result.structured_content).decode())
        return Output(text="\n".join(texts), is_error=bool(result.is_error), files=tuple(files))

    def _block(self, block: Any, name: str) -> tuple[str, File | None]:
        match block:
            case types.TextContent():
                return block.text, None
            case types.ImageContent() | types.AudioContent():
                return self._kept(name, block.data, block.mime_type)
            case types.ResourceLink():
                return f"[resource {block.uri}: {block.name}]", None
            case types.EmbeddedResource():
                return self.contents(block.resource, name)
        return f"[{type(block).__name__} is not understood]", None

    def contents(self, resource: Any, name: str) -> tuple[str, File | None]:
        if isinstance(resource, types.TextResourceContents):
            return resource.text, None
        return self._kept(name, resource.blob, resource.mime_type or "application/octet-stream")

    def _kept(self, name: str, data: str, media_type: str) -> tuple[str, File | None]:
        if len(data) > MAX_BYTES * 4 // 3:
            raise ToolError(f"{name}: too large")
        try:
            raw = base64.b64decode(data, validate=True)
        except ValueError as error:
            raise ToolError(f"{name}: not base64") from error
        file = self._artifacts.put(name, raw, media_type)
        return f"[{media_type}, {len(raw)} bytes, kept as {file.uri}]", file

    def _note(self, text: str) -> None:
        if text not in self._notices:
            self._notices.append(text)


def exposed(server: str, tool: str) -> str:
    """The name a model sees: at most 64 of the characters that every API allows."""
    name = f"{server}__{_NAME.sub('_', tool)}"
    if len(name) <= _MAX_NAME:
        return name
    return name[: _MAX_NAME - 9] + "_" + hashlib.sha256(tool.encode()).hexdigest()[:8]


def _allowed(name: str, server: McpServer) -> bool:
    return name not in server.deny and (server.allow is None or name in server.allow)


def _withheld(tool: types.Tool, known: dict[str, str]) -> str | None:
    pinned = known.get(tool.name)
    if pinned == digest(tool):
        return None
    if pinned is not None:
        return "its description has changed since it was approved; see `mortice agent mcp pin`"
    reason = suspicion(tool)
    why = f"{reason}" if reason else "it is new"
    return f"{why}; see `mortice agent mcp pin`"


def _resource_tools(host: McpHost, connection: Connection) -> list[Tool]:
    async def list_all(arguments: dict[str, Any], context: CallContext) -> Output:
        resources = await connection.ask("resources/list", lambda _: connection.resources())
        templates = await connection.ask("resources/templates/list", lambda _: connection.templates())
        lines = [f"{r.uri}  {r.name}  {r.description or ''}".strip() for r in resources]
        lines += [f"{t.uri_template}  {t.name}  {t.description or ''}".strip() for t in templates]
        return Output(text="\n".join(lines) or "no resources")

    async def read(arguments: dict[str, Any], context: CallContext) -> Output:
        uri = str(arguments["uri"])
        result = await connection.ask("resources/read", lambda client: client.read_resource(uri))
        parts = [host.contents(item, "resource") for item in result.contents]
        files = tuple(file for _, file in parts if file is not None)
        return Output(text="\n".join(text for text, _ in parts), files=files)

    uri = {"type": "object", "properties": {"uri": {"type": "string"}}, "required": ["uri"]}
    return [
        _reader(
            connection, "list_resources", f"List the resources of {connection.name}.", NO_ARGUMENTS, list_all
        ),
        _reader(connection, "read_resource", f"Read a resource of {connection.name} by its URI.", uri, read),
    ]


def _prompt_tool(host: McpHost, connection: Connection) -> Tool:
    async def get(arguments: dict[str, Any], context: CallContext) -> Output:
        name = arguments.get("name")
        if not name:
            prompts = await connection.ask("prompts/list", lambda _: connection.prompts())
            return Output(text="\n".join(f"{p.name}  {p.description or ''}" for p in prompts) or "no prompts")
        values = {str(k): str(v) for k, v in (arguments.get("arguments") or {}).items()}
        result = await connection.ask("prompts/get", lambda client: client.get_prompt(str(name), values))
        lines = [f"{m.role}: {getattr(m.content, 'text', '[not text]')}" for m in result.messages]
        return Output(text="\n".join(lines))

    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "arguments": {"type": "object"}},
    }
    text = f"Get a prompt of {connection.name} by name; without a name, list them."
    return _reader(connection, "get_prompt", text, schema, get)


NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


def _reader(connection: Connection, name: str, text: str, schema: dict[str, Any], run: Any) -> Tool:
    return Tool(
        name=exposed(connection.name, name),
        description=text,
        parameters=schema,
        run=run,
        effect="read",
        timeout_s=connection.server.call_limit_s,
        origin=f"mcp:{connection.name}",
        untrusted=not connection.server.trusted,
    )
