"""Logging in to an MCP server that wants OAuth: the SDK's flow (PKCE, resource indicators, issuer checks), with tokens
kept in a file of the user's and the answer taken on a port of this machine.
"""

import asyncio
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

from mortice.agent.mcp.config import McpServer
from mortice.agent.mcp.consent import Consent

LOGIN_WAIT_S = 300.0
_PAGE = b"<!doctype html><title>mortice</title><p>You may close this page and go back to the terminal."


class FileTokens:
    """The SDK's TokenStorage, one file a server, readable by its user only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def get_tokens(self) -> OAuthToken | None:
        found = self._read().get("tokens")
        return OAuthToken.model_validate(found) if found else None

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._write("tokens", tokens.model_dump(mode="json", exclude_none=True))

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        found = self._read().get("client")
        return OAuthClientInformationFull.model_validate(found) if found else None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self._write("client", client_info.model_dump(mode="json", exclude_none=True))

    def _read(self) -> dict[str, Any]:
        with suppress(FileNotFoundError, ValueError):
            found = json.loads(self._path.read_text())
            if isinstance(found, dict):
                return found
        return {}

    def _write(self, key: str, value: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=self._path.parent)  # made with mode 0600
        with os.fdopen(handle, "w") as file:
            json.dump(self._read() | {key: value}, file)
        os.replace(temporary, self._path)


class Loopback:
    """Waits for the browser to come back with a code."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[AuthorizationCodeResult] | None = None
        self._server: asyncio.Server | None = None
        self.port = 0

    async def listen(self) -> str:
        """The address to be sent back to."""
        self._answer = asyncio.get_running_loop().create_future()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=16_384)
        self.port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{self.port}/callback"

    async def answer(self) -> AuthorizationCodeResult:
        assert self._answer is not None
        async with asyncio.timeout(LOGIN_WAIT_S):
            return await asyncio.shield(self._answer)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(TimeoutError, ValueError, ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(10):
                line = (await reader.readline()).decode("latin-1").split(" ")
            query = parse_qs(urlsplit(line[1]).query) if len(line) > 2 and line[0] == "GET" else {}
            if "code" in query and self._answer is not None and not self._answer.done():
                first = {name: values[0] for name, values in query.items()}
                self._answer.set_result(
                    AuthorizationCodeResult(
                        code=first["code"], state=first.get("state"), iss=first.get("iss")
                    )
                )
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n" + _PAGE)
            await writer.drain()
        writer.close()


async def login(
    name: str, server: McpServer, tokens: Path, consent: Consent, back: Loopback
) -> OAuthClientProvider:
    """Auth for the HTTP client. The user is shown the address to log in at; nothing is opened behind their back."""

    async def show(url: str) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("the server names an address to log in at that is no http(s) address")
        await consent.url(name, "log in to go on", url)

    return OAuthClientProvider(
        server.url,
        metadata(await back.listen(), server.scopes),
        FileTokens(tokens),
        redirect_handler=show,
        callback_handler=back.answer,
    )


def metadata(callback: str, scopes: tuple[str, ...]) -> OAuthClientMetadata:
    return OAuthClientMetadata(
        client_name="mortice",
        redirect_uris=[AnyUrl(callback)],
        grant_types=["authorization_code", "refresh_token"],
        response_types=["code"],
        token_endpoint_auth_method="none",
        scope=" ".join(scopes) or None,
    )
