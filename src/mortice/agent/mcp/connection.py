"""One MCP server as the host holds it: a task of its own keeps the session open, lists what the server has, hears of
changes, and comes back after a loss.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx2 as httpx
import mcp_types as types
import pydantic
from mcp import Client, ClientSession, MCPError
from mcp.client.subscriptions import SubscriptionLost
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import FileUrl

from mortice.agent.machine import Boxes
from mortice.agent.mcp.boxed import BoxedServer
from mortice.agent.mcp.config import McpServer
from mortice.agent.mcp.consent import Gate
from mortice.agent.mcp.http_client import connect_http, resolved
from mortice.agent.mcp.login import LOGIN_WAIT_S
from mortice.agent.mcp.stdio import StdioServer
from mortice.agent.schema import Unchecked, mistakes
from mortice.agent.tool import OnProgress, ToolError
from mortice.obs.log import Log
from mortice.specs.errors import RequestError

_log = Log("agent.mcp")
T = TypeVar("T")
_MAX_PAGES = 1000
_RECONNECT_S = (0.0, 0.2, 1.0)
_CLIENT = types.Implementation(name="mortice", version="0.1")


class Gone(Exception):
    """The server's end of the connection is closed, or never opened. `began`: a request may have reached it."""

    def __init__(self, message: str, *, began: bool) -> None:
        super().__init__(message)
        self.began = began


class Connection:
    """`start` once, then call. All calls may come from any task of the loop."""

    def __init__(
        self,
        name: str,
        server: McpServer,
        gate: Gate,
        *,
        transport: Callable[[], Any] | None = None,
        make_auth: Callable[[], Awaitable[httpx.Auth]] | None = None,
        boxes: Callable[[], Awaitable[Boxes]] | None = None,
    ) -> None:
        self.name = name
        self.server = server
        self._gate = gate
        self._transport = transport
        self._make_auth = make_auth
        self._boxes = boxes
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._stdio: StdioServer | BoxedServer | None = None
        self._schemas: dict[str, dict[str, Any]] = {}
        self.tools: list[types.Tool] = []
        self.changed = asyncio.Event()  # the server said that its tools are others now
        self.trouble = ""

    @property
    def client(self) -> Client:
        if self._client is None:
            raise Gone(self.trouble or f"{self.name} is not connected", began=False)
        return self._client

    @property
    def modern(self) -> bool:
        return self.client.protocol_version in MODERN_PROTOCOL_VERSIONS

    async def start(self) -> None:
        """Connected and listed, or Gone with the reason."""
        # Where the user logs in, trying again would ask again.
        for pause_s in _RECONNECT_S if self._make_auth is None else (0.0,):
            await asyncio.sleep(pause_s)
            try:
                return await self._start()
            except Gone as error:
                self.trouble = str(error)
        raise Gone(self.trouble, began=False)

    @property
    def _patience_s(self) -> float:
        """For a connection to come about; a user who has to log in takes time of his own."""
        return self.server.connect_timeout_s + (LOGIN_WAIT_S if self._make_auth is not None else 0.0)

    async def _start(self) -> None:
        await self.close()
        self._stop = asyncio.Event()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(ready), name=f"mcp {self.name}")
        try:
            async with asyncio.timeout(self._patience_s):
                await asyncio.shield(ready)
        except TimeoutError:
            await self.close()
            text = f"{self.name} did not answer within {self._patience_s:g} s"
            raise Gone(text + self._last_words(), began=False) from None

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        self._stop.set()
        if self._client is None:  # still on its way up, where nobody looks at the event
            task.cancel()
        done, _ = await asyncio.wait({task}, timeout=8.0)
        if not done:
            task.cancel()
            await asyncio.wait({task}, timeout=8.0)
        self._client = None

    async def _live(self, ready: "asyncio.Future[None]") -> None:
        try:
            async with self._opened() as transport, self._make_client(transport) as client:
                # The SDK validates results against output schemas without bounds; ours has them.
                client.session.validate_tool_result = self._validate  # type: ignore[method-assign]
                self._client = client
                await self.refresh()
                ready.set_result(None)
                listener = asyncio.create_task(self._listen(client))
                try:
                    await self._stop.wait()
                finally:
                    listener.cancel()
                    await asyncio.gather(listener, return_exceptions=True)
        except BaseException as error:
            self.trouble = f"{self.name}: {_innermost(error)}{self._last_words()}"
            if not ready.done():
                ready.set_exception(Gone(self.trouble, began=False))
            if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
                raise
        finally:
            self._client = None
            if not ready.done():
                ready.set_exception(Gone(f"{self.name} was closed", began=False))
            ready.exception()  # seen, whether or not anybody waits for it

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Any]:
        server = self.server
        if self._transport is not None:
            yield self._transport()
        elif server.command:
            # Base64 grows data by a third, and a frame has more than its result.
            limit = server.max_result_bytes * 3 // 2 + (1 << 20)
            self._stdio = self._process(limit)
            yield self._stdio.connect()
        else:
            auth = await self._make_auth() if self._make_auth is not None else None
            yield connect_http(
                server.url, server.headers, max_bytes=server.max_result_bytes * 3 // 2, auth=auth
            )

    def _process(self, limit: int) -> StdioServer | BoxedServer:
        server, env = self.server, resolved(self.server.env)
        if server.sandbox is None:
            return StdioServer(server.command, server.args, env=env, cwd=server.cwd, max_frame_bytes=limit)
        if self._boxes is None:
            raise RequestError(f"{self.name}: there are no sandboxes here", param="mcpServers")
        return BoxedServer(
            server.command,
            server.args,
            env=env,
            machine=server.sandbox,
            boxes=self._boxes,
            max_frame_bytes=limit,
        )

    def _make_client(self, transport: AbstractAsyncContextManager[Any]) -> Client:
        async def elicit(
            context: Any, params: types.ElicitRequestParams
        ) -> types.ElicitResult | types.ErrorData:
            return await self._gate.elicit(params)

        async def sample(
            context: Any, params: types.CreateMessageRequestParams
        ) -> types.CreateMessageResult | types.ErrorData:
            return await self._gate.sample(params, time.monotonic())

        async def roots(context: Any) -> types.ListRootsResult:
            found = [Path(root) for root in self.server.roots]
            return types.ListRootsResult(
                roots=[types.Root(uri=FileUrl(p.as_uri()), name=p.name) for p in found]
            )

        # Only what is wired is declared.
        client = Client(
            transport,
            client_info=_CLIENT,
            elicitation_callback=elicit if self.server.elicitation != "off" else None,
            sampling_callback=sample if self.server.sampling != "off" else None,
            list_roots_callback=roots if self.server.roots else None,
            message_handler=self._hear,
            read_timeout_seconds=self.server.call_limit_s,
        )
        if self.server.url:
            _ask_patiently(client, self._patience_s)
        return client

    async def _hear(self, message: Any) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self.changed.set()

    async def _listen(self, client: Client) -> None:
        """Modern servers tell of changes on a stream of their own; a lost one is opened anew."""
        capabilities = client.server_capabilities
        if client.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            return
        if capabilities.tools is None or not capabilities.tools.list_changed:
            return
        for pause_s in (0.0, 0.2, 1.0, 5.0, 30.0):
            await asyncio.sleep(pause_s)
            with suppress(MCPError, SubscriptionLost, TimeoutError):
                async with client.listen(tools_list_changed=True) as events:
                    async for _ in events:
                        self.changed.set()

    async def refresh(self) -> None:
        """Ask for all tools, to the last page."""
        self.changed.clear()
        capabilities = self.client.server_capabilities
        if capabilities.tools is None:
            self.tools = []
            return
        self.tools = await self._pages(
            lambda cursor: self.client.list_tools(cursor=cursor, cache_mode="refresh"), "tools"
        )
        self._schemas = {t.name: t.output_schema for t in self.tools if t.output_schema is not None}

    async def resources(self) -> list[types.Resource]:
        return await self._pages(lambda cursor: self.client.list_resources(cursor=cursor), "resources")

    async def templates(self) -> list[types.ResourceTemplate]:
        return await self._pages(
            lambda cursor: self.client.list_resource_templates(cursor=cursor), "resource_templates"
        )

    async def prompts(self) -> list[types.Prompt]:
        return await self._pages(lambda cursor: self.client.list_prompts(cursor=cursor), "prompts")

    async def _pages(self, ask: Callable[[str | None], Awaitable[Any]], field: str) -> list[Any]:
        found: list[Any] = []
        cursor: str | None = None
        seen: set[str] = set()
        for _ in range(_MAX_PAGES):
            page = await ask(cursor)
            found += getattr(page, field)
            cursor = page.next_cursor
            if cursor is None:
                return found
            if cursor in seen:
                _log.warning("a list that never ends was cut", server=self.name, field=field)
                return found
            seen.add(cursor)
            if len(found) > self.server.max_tools:
                _log.warning("a list was cut", server=self.name, field=field, at=self.server.max_tools)
                return found[: self.server.max_tools]
        return found

    async def call_tool(
        self, name: str, arguments: dict[str, Any], on_progress: OnProgress | None
    ) -> types.CallToolResult:
        """ToolError if the server is silent too long or breaks the protocol, Gone if it is lost on the way."""

        async def call(progress: OnProgress) -> types.CallToolResult:
            return await self.client.call_tool(name, arguments, progress_callback=progress)

        return await self._patiently(call, f"{self.name} gave no answer to {name}", on_progress)

    async def ask(self, what: str, act: Callable[[Client], Awaitable[T]]) -> T:
        """Any other request, under the same limits."""

        async def call(_: OnProgress) -> T:
            return await act(self.client)

        return await self._patiently(call, f"{self.name} gave no answer to {what}", None)

    async def _patiently(
        self,
        call: Callable[[OnProgress], Awaitable[T]],
        silence: str,
        on_progress: OnProgress | None,
    ) -> T:
        """Silence ends a call, progress begins the wait anew, the limit is the limit. The SDK tells the server of the
        cancellation when our call is cancelled.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self.server.call_limit_s
        if self._task is None or self._task.done():
            await self.start()
        alive = self._task
        assert alive is not None
        try:
            async with asyncio.timeout(self.server.call_timeout_s) as timer:

                async def heard(progress: float, total: float | None, message: str | None) -> None:
                    timer.reschedule(min(loop.time() + self.server.call_timeout_s, end))
                    if on_progress is not None:
                        await on_progress(progress, total, message)

                job = asyncio.ensure_future(call(heard))
                try:
                    await asyncio.wait({job, alive}, return_when=asyncio.FIRST_COMPLETED)
                    if not job.done():
                        raise Gone(self.trouble or f"{self.name} went away", began=True)
                    return job.result()
                finally:
                    job.cancel()
                    await asyncio.gather(job, return_exceptions=True)
        except TimeoutError:
            raise ToolError(f"{silence} in time") from None
        except pydantic.ValidationError as error:
            raise ToolError(f"{self.name} broke the protocol: {error.errors()[0]['msg'][:200]}") from error
        except MCPError as error:
            if error.code == types.CONNECTION_CLOSED:
                raise Gone(f"{self.name}: {error}{self._last_words()}", began=True) from error
            raise ToolError(f"{self.name}: {str(error)[:2000]}") from error

    async def _validate(self, name: str, result: types.CallToolResult) -> None:
        schema = self._schemas.get(name)
        if schema is None:
            return
        if result.structured_content is None:
            raise ToolError(f"{self.name}: {name} gave no structured result though it says it does")
        try:
            wrong = mistakes(result.structured_content, schema)
        except Unchecked as error:
            raise ToolError(f"{self.name}: the result of {name} cannot be checked: {error}") from error
        if wrong:
            raise ToolError(f"{self.name}: {name} gave a result that is not what it says: {wrong[0]}")

    def _last_words(self) -> str:
        lines = list(self._stdio.stderr)[-3:] if self._stdio else []
        return "".join(f"\n  {line}" for line in lines)


def _ask_patiently(client: Client, timeout_s: float) -> None:
    """The SDK takes ten seconds of silence at `server/discover` for an older server and begins the handshake of those. A
    process may be silent; over HTTP an answer comes, and a user's login or a busy machine may come before it.
    """
    build = client._build_session

    async def patient(stack: AsyncExitStack) -> ClientSession:
        session = await build(stack)
        dispatcher = session._dispatcher
        send = dispatcher.send_raw_request

        async def send_raw_request(method: str, params: Any, opts: Any = None, **more: Any) -> dict[str, Any]:
            if method == "server/discover":
                opts = {**(opts or {}), "timeout": timeout_s}
            return await send(method, params, opts, **more)

        dispatcher.send_raw_request = send_raw_request  # type: ignore[method-assign]
        return session

    client._build_session = patient  # type: ignore[assignment, method-assign]


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".strip().removesuffix(":")[:500]
