"""The ASGI application: every route, and what happens around each of them."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route, Router

from mortice.cluster.api import Cluster
from mortice.serve import admin, dashboard, plain, responses
from mortice.serve.api import (
    AdminRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerateRequest,
    LoadAdapterRequest,
    ResponsesRequest,
    RolesRequest,
    SleepRequest,
    TokenizeRequest,
    UnloadAdapterRequest,
    WeightsRequest,
)
from mortice.serve.body import parse
from mortice.serve.chat import chat
from mortice.serve.completions import completions
from mortice.serve.edge import Edge, new_id
from mortice.serve.errors import CLIENT_CLOSED, HttpError, error_status
from mortice.serve.generate import generate
from mortice.serve.guard import check_admin, check_key
from mortice.serve.link import ClientGone, Link, Receive, Scope, Send
from mortice.serve.openapi import openapi
from mortice.serve.options import ServeOptions
from mortice.serve.running import SlowReader
from mortice.specs.errors import MorticeError, Overloaded
from mortice.text.service import TextService

Handler = Callable[..., Awaitable[None]]
Guard = Callable[[Link, ServeOptions], None]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Call:
    """One route's handler as an ASGI application: guard, body, time limit, hang-up, errors, log."""

    def __init__(
        self,
        edge: Edge,
        handler: Handler,
        body: type[msgspec.Struct] | None = None,
        *,
        guard: Guard | None = check_key,
        fields: str | None = None,
        body_optional: bool = False,
    ) -> None:
        """`fields`: the route's name in fields.py. `body_optional`: an empty body stands for {}."""
        self.handler = handler
        self.body = body
        self.guard = guard
        self._edge = edge
        self._fields = fields
        self._body_optional = body_optional

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        link = Link(scope, receive, send, "")
        given = link.header(b"x-request-id")
        link.request_id = given if given and _REQUEST_ID.fullmatch(given) else new_id("req")
        limits = self._edge.options.admission
        try:
            if self.guard is not None:
                self.guard(link, self._edge.options)
            with self._edge.bodies.room() as take:
                data = await link.read(limits.max_body_bytes, limits.body_timeout_s, take)
                await link.until_gone(self._work(link, data))
        except ClientGone:
            self._log(link, CLIENT_CLOSED)
        except SlowReader as error:
            self._log(link, error.status)
        except Exception as error:  # a request may fail only itself, whatever it met
            await self._fail(link, error)

    async def _work(self, link: Link, data: bytes) -> None:
        if self.body is None:
            await self.handler(self._edge, link)
        else:
            data = b"{}" if not data and self._body_optional else data
            await self.handler(self._edge, link, parse(data, self.body, self._fields))

    async def _fail(self, link: Link, error: Exception) -> None:
        status = error_status(error)
        if isinstance(error, Overloaded) and error.code == "bodies_full":
            self._edge.metrics.add("admission_rejections_total", 1, "bodies_full")
        if not isinstance(error, MorticeError):
            self._edge.log.error("fault", exc=error, path=link.scope["path"], request_id=link.request_id)
        if not link.status:
            await link.fail(error)
        self._log(link, status)

    def _log(self, link: Link, status: int) -> None:
        self._edge.log.info(
            "request failed", path=link.scope["path"], status=status, request_id=link.request_id
        )


def routes_of(edge: Edge) -> list[Route]:
    """Every route but the page's."""

    def get(path: str, handler: Handler, guard: Guard | None = check_key) -> Route:
        return Route(path, Call(edge, handler, guard=guard), methods=["GET"])

    def post(
        path: str, handler: Handler, body: type[msgspec.Struct] | None = None, fields: str | None = None
    ) -> Route:
        return Route(path, Call(edge, handler, body, fields=fields), methods=["POST"])

    def command(path: str, handler: Handler, body: type[msgspec.Struct] = AdminRequest) -> Route:
        optional = body in (AdminRequest, SleepRequest)
        return Route(
            path, Call(edge, handler, body, guard=check_admin, body_optional=optional), methods=["POST"]
        )

    return [
        post("/v1/chat/completions", chat, ChatRequest, "chat"),
        post("/v1/completions", completions, CompletionRequest, "completions"),
        post("/v1/responses", responses.create, ResponsesRequest, "responses"),
        get("/v1/responses/{response_id}", responses.get),
        get("/v1/responses/{response_id}/input_items", responses.input_items_of),
        post("/v1/responses/{response_id}/cancel", responses.cancel),
        Route("/v1/responses/{response_id}", Call(edge, responses.delete), methods=["DELETE"]),
        get("/v1/models", plain.list_models),
        get("/v1/models/{model:path}", plain.get_model),
        post("/generate", generate, GenerateRequest, "generate"),
        post("/tokenize", plain.tokenize, TokenizeRequest, "tokenize"),
        post("/detokenize", plain.detokenize, DetokenizeRequest, "detokenize"),
        get("/health", plain.health, None),
        get("/ready", plain.health, None),
        get("/version", plain.version, None),
        get("/metrics", plain.metrics, None),
        get("/openapi.json", openapi, None),
        command("/v1/load_lora_adapter", admin.load_adapter, LoadAdapterRequest),
        command("/v1/unload_lora_adapter", admin.unload_adapter, UnloadAdapterRequest),
        get("/admin/workers", admin.list_workers, check_admin),
        get("/admin/deployment", admin.deployment, check_admin),
        get("/admin/roles", admin.roles, check_admin),
        command("/admin/roles", admin.set_roles, RolesRequest),
        command("/admin/pause", admin.verb("pause")),
        command("/admin/resume", admin.verb("resume")),
        command("/admin/sleep", admin.sleep, SleepRequest),
        command("/admin/wake", admin.verb("wake")),
        command("/admin/weights", admin.update_weights, WeightsRequest),
        command("/admin/reset_prefix_cache", admin.verb("reset_prefix_cache")),
        command("/admin/check_integrity", admin.verb("check_integrity")),
        command("/admin/drain", admin.drain),
    ]


class App:
    """The routes, and our shape of 404 and 405 for whatever is none of them. `edge` is what its routes
    share.
    """

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self._router = Router(
            [*routes_of(edge), *page_routes(edge)], redirect_slashes=False, lifespan=self._life
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # makes the router raise its 404 and 405 instead of answering them
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            path, method = scope["path"], scope["method"]
            link = Link(scope, receive, send, new_id("req"))
            await link.fail(_no_route(path, method, error))

    @contextlib.asynccontextmanager
    async def _life(self, app: Any) -> AsyncIterator[None]:
        following = asyncio.create_task(self.edge.follow())
        try:
            yield
        finally:
            following.cancel()
            (ending,) = await asyncio.gather(following, return_exceptions=True)
            if isinstance(ending, Exception):
                self.edge.log.error("the feed of the cluster broke: timelines lack stages", exc=ending)
            await self.edge.close()


def build_app(cluster: Cluster, text_service: TextService, options: ServeOptions) -> App:
    """The application over a started cluster and a started text service, which stay the caller's to stop."""
    return App(Edge(cluster, text_service, options))


def page_routes(edge: Edge) -> list[BaseRoute]:
    """What a browser sees at `/`."""
    return [
        Route(path, Call(edge, handler, guard=guard), methods=["GET"])
        for path, handler, guard in dashboard.routes(edge)
    ]


_KNOWN_ELSEWHERE = re.compile(
    r"/v1/(embeddings|rerank|score|messages|audio|images|moderations|files|batches)(/|$)"
)


def _no_route(path: str, method: str, error: HTTPException) -> HttpError:
    if error.status_code == 405:
        message = f"{method} is not allowed for {path[:200]}"
        return HttpError(405, "invalid_request_error", message, code="method_not_allowed")
    if found := _KNOWN_ELSEWHERE.match(path):
        message = f"/v1/{found[1]} is not supported: this server completes text and chats"
        return HttpError(404, "invalid_request_error", message, code="unsupported_route")
    return HttpError(404, "invalid_request_error", f"there is no route {path[:200]}", code="not_found")
