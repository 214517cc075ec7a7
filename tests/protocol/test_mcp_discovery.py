"""Which revision a server speaks is asked, and over HTTP the answer is waited for."""

import asyncio

import mcp.client.session
import uvicorn
from mcp.server import MCPServer

from mortice.agent.mcp.config import McpServer
from mortice.agent.mcp.connection import Connection
from mortice.agent.mcp.consent import Gate, Nobody


async def test_a_slow_answer_over_http_is_not_taken_for_an_older_server(monkeypatch):
    """As when a user logs in first: nothing is answered before the SDK would have given up."""
    monkeypatch.setattr(mcp.client.session, "DISCOVER_TIMEOUT_SECONDS", 0.05)
    inner = MCPServer("slow").streamable_http_app()
    asked: list[str] = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            method = dict(scope["headers"]).get(b"mcp-method", b"initialize").decode()
            asked.append(method)
            if method == "server/discover":
                await asyncio.sleep(0.5)
        await inner(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    document = McpServer(url=url, connect_timeout_s=60.0)
    connection = Connection("slow", document, Gate("slow", document, Nobody(), None))
    try:
        await connection.start()
        assert connection.modern
    finally:
        await connection.close()
        server.should_exit = True
        await serving
    assert (asked[0], "initialize" in asked) == ("server/discover", False)
