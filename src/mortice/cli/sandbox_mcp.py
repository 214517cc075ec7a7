"""`mortice sandbox serve-mcp`: the sandbox for any MCP host."""

import asyncio
from pathlib import Path
from typing import Annotated, Literal

import typer

Backend = Literal["auto", "microvm", "gvisor", "process", "wasm"]


def serve_mcp(
    http: Annotated[
        str | None, typer.Option(help="HOST:PORT for streamable HTTP. Default: stdio.", metavar="HOST:PORT")
    ] = None,
    auth: Annotated[Path | None, typer.Option(help="Who may call over HTTP: see docs/agent-mcp.md.")] = None,
    backend: Annotated[Backend, typer.Option(help="auto: the strongest that works here.")] = "auto",
    memory_mib: Annotated[int, typer.Option(help="Of each sandbox.", min=64)] = 512,
    allow: Annotated[
        list[str] | None, typer.Option(help="HOST:PORT that may be reached; repeatable. Default: none.")
    ] = None,
) -> None:
    """Offer sandboxes to Claude Desktop, an IDE or any other MCP host, over stdio or HTTP."""
    # The SDK costs a second that no other verb should pay.
    from mortice.agent.mcp.oauth import read_auth
    from mortice.agent.mcp.serve_sandbox import SandboxServer
    from mortice.agent.mcp.serving import serve_http, serve_stdio
    from mortice.sandbox import Egress, Limits, Sandboxes, SandboxSpec

    who = read_auth(auth) if auth is not None else None
    egress = Egress(mode="allowlist", allow=tuple(allow)) if allow else Egress()
    spec = SandboxSpec(backend=backend, limits=Limits(memory_bytes=memory_mib << 20), egress=egress)

    async def go() -> None:
        async with Sandboxes() as boxes:
            served = SandboxServer(boxes, spec, auth=who)
            try:
                await (serve_stdio(served.server) if http is None else serve_http(served.server, http, who))
            finally:
                await served.close()

    asyncio.run(go())
