"""Which MCP servers an agent may use and what each may do: the `mcpServers` document that other hosts know, with our
rules beside it.
"""

import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from mortice.agent.spec_machine import Machine
from mortice.agent.tool import Effect
from mortice.specs.checked import checked
from mortice.specs.errors import RequestError

NAME = re.compile(r"[A-Za-z0-9-]{1,32}")


class McpServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`command` (stdio) or `url` (streamable HTTP). `env` names variables of ours that the server may see: `NAME: value`,
    or `NAME: $OTHER` to hand one over. `allow` and `deny` name tools as the server does.
    """

    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str | None = None
    sandbox: Machine | None = None  # run `command` in a sandbox of its own; None: as a process of yours
    url: str = ""
    headers: dict[str, str] = {}  # values may be $NAME, read from the environment when the server is reached

    login: bool = False  # OAuth: the user logs in once, tokens are kept in a file
    scopes: tuple[str, ...] = ()

    allow: tuple[str, ...] | None = None  # None: all that are not denied
    deny: tuple[str, ...] = ()
    approve: tuple[str, ...] = ()
    effects: dict[
        str, Effect
    ] = {}  # what a tool does is said by you, not by its server; unsaid: write_external
    trusted: bool = False  # its results do not taint, its texts may change
    connect_timeout_s: float = 30.0
    call_timeout_s: float = 60.0  # of silence; progress begins it anew
    call_limit_s: float = 600.0  # of a call as a whole
    max_tools: int = 1000
    max_result_bytes: int = 8 << 20

    sampling: Literal["off", "ask", "allow"] = "off"  # may the server use our model?
    sampling_per_minute: int = 6
    elicitation: Literal["off", "ask"] = "ask"  # may the server ask the user?
    roots: tuple[str, ...] = ()  # folders that the server is told of


def read_servers(values: dict[str, Any], *, folder: Path) -> dict[str, McpServer]:
    """RequestError names the server and the field. Relative `cwd`, `roots` and `./` arguments are meant from `folder`."""
    servers = {}
    for name, value in values.items():
        if isinstance(value, McpServer):
            servers[name] = value
            continue
        if not NAME.fullmatch(name):
            raise RequestError(f"mcpServers.{name}: names are letters, digits and '-'", param="mcpServers")
        if not isinstance(value, dict):
            raise RequestError(f"mcpServers.{name}: a mapping with `command` or `url`", param="mcpServers")
        value = {k: v for k, v in value.items() if k not in ("type", "transport")}
        try:
            server = checked(value, McpServer)
        except RequestError as error:
            raise RequestError(f"mcpServers.{name}.{error.message}", param="mcpServers") from error
        servers[name] = _checked(name, server, folder)
    return servers


def _checked(name: str, server: McpServer, folder: Path) -> McpServer:
    if bool(server.command) == bool(server.url):
        raise RequestError(f"mcpServers.{name}: either `command` or `url`", param="mcpServers")
    if server.url and urlsplit(server.url).scheme not in ("http", "https"):
        raise RequestError(f"mcpServers.{name}.url: http:// or https://", param="mcpServers")
    if server.sandbox is not None:
        if server.url:
            raise RequestError(
                f"mcpServers.{name}.sandbox: only a `command` can run in one", param="mcpServers"
            )
        files = {inside: str((folder / here).resolve()) for inside, here in server.sandbox.files.items()}
        machine = msgspec.structs.replace(server.sandbox, files=files)
        return msgspec.structs.replace(server, sandbox=machine)
    return msgspec.structs.replace(
        server,
        cwd=str((folder / (server.cwd or ".")).resolve()) if server.command else None,
        args=tuple(str((folder / a).resolve()) if a.startswith("./") else a for a in server.args),
        roots=tuple(str((folder / root).resolve()) for root in server.roots),
    )
