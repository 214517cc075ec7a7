"""What `mortice agent serve-mcp` does."""

import asyncio
from pathlib import Path

from mortice.agent.home import Home
from mortice.agent.mcp.oauth import read_auth
from mortice.agent.mcp.serve_agent import AgentServer
from mortice.agent.mcp.serving import serve_http, serve_stdio
from mortice.agent.service import Agents, check_tools
from mortice.agent.spec import read_agent


def serve_agent(place: Home, config: Path, *, http: str | None, auth: Path | None) -> None:
    spec = read_agent(config)
    check_tools(spec)
    who = read_auth(auth) if auth is not None else None
    served = AgentServer(spec, who)

    async def go() -> None:
        async with Agents(place, on_event=served.hear) as agents:
            served.agents = agents
            await (serve_stdio(served.server) if http is None else serve_http(served.server, http, who))

    asyncio.run(go())
