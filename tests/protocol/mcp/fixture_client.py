"""The client that the conformance suite of MCP drives: one run of our `Connection` a scenario.

Usage: fixture_client.py URL, with MCP_CONFORMANCE_SCENARIO (and _CONTEXT, _PROTOCOL_VERSION) in the environment.
"""

import asyncio
import json
import os
import sys
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2 as httpx
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

from mortice.agent.mcp.config import McpServer
from mortice.agent.mcp.connection import Connection, Gone
from mortice.agent.mcp.consent import Choice, Form, Gate
from mortice.agent.mcp.login import metadata
from mortice.agent.schema import Unchecked, check_schema
from mortice.agent.tool import ToolError

SCENARIO = os.environ.get("MCP_CONFORMANCE_SCENARIO", "")
CONTEXT: dict[str, Any] = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
CALLBACK = "http://localhost:3000/callback"


class Yes:
    """A user who agrees and leaves every field as it is."""

    async def form(self, form: Form) -> tuple[Choice, dict[str, Any]]:
        return "accept", {}

    async def url(self, server: str, message: str, url: str) -> Choice:
        return "accept"

    async def sample(self, server: str, messages: list[dict[str, Any]]) -> bool:
        return True


class Memory:
    """Tokens for as long as the scenario runs; a client that was registered beforehand where the context names one."""

    def __init__(self) -> None:
        self._tokens: OAuthToken | None = None
        self._client: OAuthClientInformationFull | None = None
        if "client_id" in CONTEXT:
            secret = CONTEXT.get("client_secret")
            known = metadata(CALLBACK, ()).model_dump() | {
                "client_id": CONTEXT["client_id"],
                "client_secret": secret,
                "token_endpoint_auth_method": "client_secret_basic" if secret else "none",
            }
            self._client = OAuthClientInformationFull.model_validate(known)

    async def get_tokens(self) -> OAuthToken | None:
        return self._tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self._client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self._client = client_info


class Browser:
    """Goes where it is sent and comes back at once."""

    def __init__(self) -> None:
        self._location = ""

    async def open(self, url: str) -> None:
        async with httpx.AsyncClient(follow_redirects=False) as client:
            self._location = (await client.get(url)).headers["location"]

    async def answer(self) -> AuthorizationCodeResult:
        found = {name: values[0] for name, values in parse_qs(urlsplit(self._location).query).items()}
        return AuthorizationCodeResult(code=found["code"], state=found.get("state"), iss=found.get("iss"))


async def make_auth() -> httpx.Auth:
    browser = Browser()
    wanted = metadata(CALLBACK, ())
    wanted.token_endpoint_auth_method = None  # the server says which of its ways it wants
    return OAuthClientProvider(
        sys.argv[-1],
        wanted,
        Memory(),
        redirect_handler=browser.open,
        callback_handler=browser.answer,
        client_metadata_url="https://conformance-test.local/client-metadata.json",
    )


def arguments_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Something for every parameter that must be there."""
    examples = {"string": "text", "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
    properties = schema.get("properties", {})
    return {
        name: examples.get(properties.get(name, {}).get("type"), "text")
        for name in schema.get("required", ())
    }


async def main() -> None:
    server = McpServer(url=sys.argv[-1], connect_timeout_s=60.0, call_timeout_s=30.0)
    auth = make_auth if SCENARIO.startswith("auth/") else None
    connection = Connection("suite", server, Gate("suite", server, Yes(), None), make_auth=auth)
    await connection.start()
    try:
        for call in CONTEXT.get("toolCalls", ()):
            with suppress(ToolError, Gone):
                await connection.call_tool(call["name"], call.get("arguments", {}), None)
        if "toolCalls" not in CONTEXT:
            await call_everything(connection)
    finally:
        await connection.close()


async def call_everything(connection: Connection) -> None:
    for tool in list(connection.tools):
        try:
            check_schema(tool.input_schema)
        except Unchecked:
            continue  # the host would withhold it
        arguments = {"a": 5, "b": 3} if tool.name == "add_numbers" else arguments_of(tool.input_schema)
        with suppress(ToolError, Gone):
            await connection.call_tool(tool.name, arguments, None)


if __name__ == "__main__":
    asyncio.run(main())
