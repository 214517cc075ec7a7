"""What `mortice agent mcp ls`, `pin` and `call` do: a user's look at MCP servers before an agent has them."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import typer

from mortice.agent.artifacts import Artifacts
from mortice.agent.home import Home
from mortice.agent.machine import Boxes
from mortice.agent.mcp.config import McpServer, read_servers
from mortice.agent.mcp.connection import Gone
from mortice.agent.mcp.host import McpHost
from mortice.agent.mcp.pins import Pins, digest, server_id, suspicion
from mortice.agent.spec import read_document
from mortice.agent.tool import ToolError
from mortice.cli.agent_output import Watch
from mortice.sandbox import Sandboxes
from mortice.specs.errors import MorticeError, RequestError


def print_tools(place: Home, config: Path, *, as_json: bool) -> None:
    async def look(host: McpHost) -> list[dict[str, Any]]:
        offered = {tool.name for tool in host.tools()}
        rows = []
        for connection in host.connections.values():
            rows.append(
                {
                    "server": connection.name,
                    "trouble": connection.trouble,
                    "tools": [
                        {
                            "name": tool.name,
                            "offered": any(
                                name.startswith(f"{connection.name}__{tool.name}") for name in offered
                            ),
                            "suspicion": suspicion(tool),
                            "digest": digest(tool),
                            "description": tool.description or "",
                            "input_schema": tool.input_schema,
                        }
                        for tool in connection.tools
                    ],
                }
            )
        for notice in host.drain():
            typer.echo(f"note: {notice}", err=True)
        return rows

    rows = asyncio.run(_with_host(place, servers_of(config), look))
    if as_json:
        typer.echo(msgspec.json.encode(rows).decode())
        return
    for row in rows:
        typer.echo(f"{row['server']}  {row['trouble']}".rstrip())
        for tool in row["tools"]:
            mark = " " if tool["offered"] else "-"
            typer.echo(f" {mark} {tool['name']}  {ascii(tool['description'])[1:-1]}")
            if tool["suspicion"]:
                typer.echo(f"     beware: {tool['suspicion']}")


def pin(place: Home, config: Path, names: list[str], *, as_json: bool) -> None:
    servers = servers_of(config)
    unknown = set(names) - set(servers)
    if unknown:
        raise RequestError(f"the document has no server {', '.join(sorted(unknown))}", param="server")
    chosen = {name: servers[name] for name in names or servers}

    async def go(host: McpHost) -> dict[str, int]:
        pinned = {}
        for name, connection in host.connections.items():
            if connection.trouble and not connection.tools:
                raise MorticeError(connection.trouble)
            digests = {tool.name: digest(tool) for tool in connection.tools}
            Pins(place.pins).pin(server_id(name, connection.server), digests)
            pinned[name] = len(digests)
        return pinned

    pinned = asyncio.run(_with_host(place, chosen, go))
    if as_json:
        typer.echo(msgspec.json.encode(pinned).decode())
    else:
        typer.echo("\n".join(f"{name}: {count} tools pinned" for name, count in pinned.items()))


def call(place: Home, config: Path, server: str, tool: str, arguments: str, *, as_json: bool) -> None:
    servers = servers_of(config)
    if server not in servers:
        raise RequestError(f"the document has no server {server}", param="server")
    try:
        given = msgspec.json.decode(arguments, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise RequestError(f"a JSON object: {error}", param="arguments") from error

    async def go(host: McpHost) -> Any:
        connection = host.connections[server]
        try:
            result = await connection.call_tool(tool, given, None)
        except (Gone, ToolError) as error:
            raise MorticeError(str(error)) from error
        return host.output(connection, tool, result)

    output = asyncio.run(_with_host(place, {server: servers[server]}, go))
    typer.echo(msgspec.json.encode(output).decode() if as_json else output.text)
    if output.is_error:
        raise typer.Exit(1)


def servers_of(config: Path) -> dict[str, McpServer]:
    document = read_document(config)
    values = document.get("mcpServers", document.get("mcp_servers")) if isinstance(document, dict) else None
    if not isinstance(values, dict):
        raise RequestError(f"{config}: no `mcpServers`", param="mcpServers")
    return read_servers(values, folder=config.resolve().parent)


async def _with_host(
    place: Home, servers: dict[str, McpServer], act: Callable[[McpHost], Awaitable[Any]]
) -> Any:
    async with AsyncExitStack() as stack:
        boxed = any(server.sandbox is not None for server in servers.values())
        made: Boxes | None = await stack.enter_async_context(Sandboxes()) if boxed else None

        async def boxes() -> Boxes:
            assert made is not None
            return made

        host = McpHost(
            servers,
            pins=Pins(place.pins),
            artifacts=Artifacts(place.artifacts),
            consent=Watch("ask"),
            tokens=place.tokens,
            boxes=boxes,
        )
        return await act(await stack.enter_async_context(host))
