"""Puts an MCP server of ours on stdio or on streamable HTTP: loopback unless told, `Origin` and `Host` checked, bodies
bounded, and beyond loopback only for callers with a token.
"""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import sys

import uvicorn
from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

from mortice.agent.mcp.oauth import Auth
from mortice.specs.errors import RequestError

MAX_BODY_BYTES = 4 << 20
MAX_SESSIONS = 256


async def serve_stdio(server: MCPServer) -> None:
    """Until stdin closes. stdout is the protocol's alone."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    serving = asyncio.ensure_future(server.run_stdio_async())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):  # what is open is closed, whichever way the host leaves
        loop.add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def serve_http(server: MCPServer, address: str, auth: Auth | None) -> None:
    """`/mcp` at HOST:PORT until the process ends; port 0 takes a free one. The address is printed on stderr."""
    host, port = parsed(address)
    if not _loopback(host) and auth is None:
        raise RequestError(f"{host} is not this machine alone: give --auth", param="http")
    app = server.streamable_http_app(
        host=host,
        max_request_body_size=MAX_BODY_BYTES,
        max_sessions=MAX_SESSIONS,
        transport_security=security(host, auth),
    )
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=2
    )
    runner = uvicorn.Server(config)
    listener = config.bind_socket()
    listener.listen(config.backlog)  # who reads the address may connect at once
    name, bound = listener.getsockname()[:2]
    print(
        f"listening on http://{f'[{name}]' if ':' in name else name}:{bound}/mcp", file=sys.stderr, flush=True
    )
    await runner.serve(sockets=[listener])


def security(host: str, auth: Auth | None) -> TransportSecuritySettings:
    """Names under which the server may be addressed: what it listens on, and what its tokens call it."""
    names = ["127.0.0.1", "localhost", "[::1]"] if _loopback(host) else [f"[{host}]" if ":" in host else host]
    hosts = [f"{name}:*" for name in names] + names
    origins = [f"http://{name}:*" for name in names]
    if auth is not None:
        parts = auth.resource.split("/")
        hosts.append(parts[2])
        origins.append("/".join(parts[:3]))
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


def parsed(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise RequestError("HOST:PORT, for example 127.0.0.1:8100", param="http")
    return host.strip("[]") or "127.0.0.1", int(port)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
