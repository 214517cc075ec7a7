"""A streamable-HTTP server: the SDK's transport over a client that bounds answers and follows no redirect elsewhere."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2 as httpx
from mcp.client.streamable_http import streamable_http_client

from mortice.specs.errors import RequestError


class _Bounded(httpx.AsyncBaseTransport):
    """Ends an answer that grows beyond the bound; event streams are bounded by event instead, by the SDK."""

    def __init__(self, inner: httpx.AsyncBaseTransport, max_bytes: int) -> None:
        self._inner = inner
        self._max = max_bytes

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = _BoundedStream(response.stream, self._max)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, max_bytes: int) -> None:
        self._inner = inner
        self._left = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._left -= len(chunk)
            if self._left < 0:
                raise httpx.ReadError("the answer is larger than allowed")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


@asynccontextmanager
async def connect_http(
    url: str, headers: dict[str, str], *, max_bytes: int, auth: httpx.Auth | None = None
) -> AsyncIterator[tuple]:
    transport = _Bounded(httpx.AsyncHTTPTransport(), max_bytes)
    timeout = httpx.Timeout(30.0, read=300.0)
    async with (
        httpx.AsyncClient(
            headers=resolved(headers), timeout=timeout, transport=transport, auth=auth
        ) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=max_bytes) as streams,
    ):
        yield streams


def resolved(values: dict[str, str]) -> dict[str, str]:
    """`$NAME` from the environment: a secret is named in a document, never written there."""
    found = {}
    for key, value in values.items():
        if value.startswith("$"):
            if value[1:] not in os.environ:
                raise RequestError(
                    f"the environment has no {value[1:]}, which {key} needs", param="mcpServers"
                )
            value = os.environ[value[1:]]
        found[key] = value
    return found
