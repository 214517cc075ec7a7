"""The Responses API: create (at once, streamed or in the background), fetch, cancel, delete."""

import asyncio
import secrets
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qs

import msgspec

from mortice.serve.api import ResponsesRequest
from mortice.serve.building import compile_grammar, engine_request, now_s, output_room, sampling_params
from mortice.serve.chat import call_format, reasoning_at, template_kwargs
from mortice.serve.edge import Edge
from mortice.serve.link import Link
from mortice.serve.response_items import as_messages, chat_tools, input_items
from mortice.serve.response_output import Output
from mortice.serve.response_store import ResponseStore
from mortice.serve.running import Run, collect, stream
from mortice.serve.voice import Piece, VoiceSettings
from mortice.specs.errors import MorticeError, NotFound, RequestError
from mortice.specs.request import Request
from mortice.text.calls import ChatInput, GrammarInput
from mortice.text.stream import check_stop

Json = dict[str, Any]

_LOGPROBS = "message.output_text.logprobs"


async def create(edge: Edge, link: Link, body: ResponsesRequest) -> None:
    """POST /v1/responses"""
    _check(edge, body)
    arrival_s = now_s()
    items = await _conversation(edge, body)
    response = _new_response(edge, body, arrival_s)
    if body.background:
        await _in_background(edge, link, body, response, items, arrival_s)
        return
    with edge.admitted(1):
        request, settings = await _prepare(edge, link, body, items, response["id"], arrival_s)
        run = Run(edge, [request], settings, "responses")
        output = Output(run, response, _wants_logprobs(body))
        keeper = _Keeper(edge, body, output, items)
        if body.stream:
            await stream(link, run, keeper)
        else:
            await _whole(run, output)
            await keeper.keep()
            await link.json(response)


async def get(edge: Edge, link: Link) -> None:
    """GET /v1/responses/{id}"""
    query = parse_qs(link.scope["query_string"].decode("latin-1"))
    for name in query:
        if name not in ("include", "include[]"):
            raise RequestError(f"the parameter {name[:100]!r} is not supported here", param=name[:100])
    response, _ = await _stored(edge, link)
    await link.json(response)


async def input_items_of(edge: Edge, link: Link) -> None:
    """GET /v1/responses/{id}/input_items: all that led to the response, oldest first."""
    _, items = await _stored(edge, link)
    await link.json({"object": "list", "data": items, "has_more": False})


async def cancel(edge: Edge, link: Link) -> None:
    """POST /v1/responses/{id}/cancel: end a response that runs in the background."""
    response, _ = await _stored(edge, link)
    if not response["background"]:
        raise RequestError(
            "only a response created with background: true can be cancelled", param="response_id"
        )
    task = edge.background.get(response["id"])
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        response, _ = await _stored(edge, link)
    await link.json(response)


async def delete(edge: Edge, link: Link) -> None:
    """DELETE /v1/responses/{id}"""
    response, _ = await _stored(edge, link)
    task = edge.background.get(response["id"])
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await _store(edge).delete(response["id"])
    await link.json({"id": response["id"], "object": "response", "deleted": True})


def _store(edge: Edge) -> ResponseStore:
    if edge.store is None:
        raise NotFound("this server stores no responses", param="response_id", code="store_off")
    return edge.store


async def _stored(edge: Edge, link: Link) -> tuple[Json, list[Json]]:
    response_id = link.scope["path_params"]["response_id"]
    return await _find(edge, response_id, "response_id")


async def _find(edge: Edge, response_id: str, param: str) -> tuple[Json, list[Json]]:
    found = await _store(edge).get(response_id)
    if found is None:
        raise NotFound(
            f"no response has the id {response_id[:100]!r}", param=param, code="response_not_found"
        )
    return found


def _check(edge: Edge, body: ResponsesRequest) -> None:
    if body.truncation == "auto":
        raise RequestError(
            "truncation must be disabled: a conversation that is too long is refused", param="truncation"
        )
    for name in body.include or ():
        if name != _LOGPROBS:
            raise RequestError(f"include knows {_LOGPROBS} only, not {name[:100]!r}", param="include")
    if body.reasoning is not None and (body.reasoning.summary or body.reasoning.generate_summary):
        raise RequestError("summaries of reasoning are not supported", param="reasoning.summary")
    if body.background and body.stream:
        raise RequestError("a background response cannot be streamed; fetch it by its id", param="background")
    if body.background and body.store is False:
        raise RequestError("a background response must be stored", param="store")
    if edge.store is None and (body.store or body.background):
        raise RequestError("this server stores no responses", param="store" if body.store else "background")


def _wants_logprobs(body: ResponsesRequest) -> bool:
    return body.top_logprobs is not None or _LOGPROBS in (body.include or ())


async def _conversation(edge: Edge, body: ResponsesRequest) -> list[Json]:
    """All input items: those of earlier responses, what they answered, and the new ones."""
    items = input_items(body.input)
    if body.previous_response_id is None:
        return items
    previous, before = await _find(edge, body.previous_response_id, "previous_response_id")
    if previous["status"] in ("queued", "in_progress"):
        raise RequestError("the previous response is still running", param="previous_response_id")
    return [*before, *previous["output"], *items]


def _new_response(edge: Edge, body: ResponsesRequest, arrival_s: float) -> Json:
    """The response object, before anything was written."""
    form = body.text.format if body.text is not None else None
    given = msgspec.to_builtins(form) if form is not None else {"type": "text"}
    return {
        "id": f"resp_{secrets.token_hex(24)}",
        "object": "response",
        "created_at": int(arrival_s),
        "status": "queued" if body.background else "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": edge.adapter_for(body.model) or edge.cluster.model.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": edge.store is not None and body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {name: value for name, value in given.items() if value is not None}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
        "weight_version": edge.cluster.model.weight_version,
    }


async def _prepare(
    edge: Edge, link: Link, body: ResponsesRequest, items: list[Json], response_id: str, arrival_s: float
) -> tuple[Request, VoiceSettings]:
    stop = check_stop(body.stop)
    tools = chat_tools(body.tools)
    effort = body.reasoning.effort if body.reasoning is not None else None
    chat = ChatInput(
        messages=as_messages(body.instructions, items),
        tools=tools,
        tool_choice=body.tool_choice,
        chat_template_kwargs=template_kwargs(body.chat_template_kwargs, effort),
    )
    prompt = await edge.text.render_chat(chat)
    reasoning = reasoning_at(edge, prompt)
    form = body.text.format if body.text is not None else None
    parallel = body.parallel_tool_calls is not False
    grammar = await compile_grammar(
        edge,
        GrammarInput(
            response_format=None if form is None or form.type == "text" else msgspec.to_builtins(form),
            tools=tools,
            tool_choice=body.tool_choice,
            parallel_tool_calls=parallel,
            reasoning=reasoning,
        ),
    )
    room = output_room(edge, prompt, body.max_output_tokens, place="input", bound="max_output_tokens")
    logprobs = (body.top_logprobs or 0) if _wants_logprobs(body) else None
    request = engine_request(
        edge,
        link,
        body,
        request_id=response_id,
        prompt=prompt,
        sampling=sampling_params(edge, body, max_tokens=room, logprobs=logprobs, grammar=grammar),
        n=1,
        adapter=edge.adapter_for(body.model),
        arrival_s=arrival_s,
    )
    settings = VoiceSettings(
        edge.text,
        stop=stop,
        reasoning=reasoning,
        tool_format=call_format(edge, tools, body.tool_choice, parallel),
    )
    return request, settings


async def _whole(run: Run, output: Output) -> None:
    output.pieces(await collect(run))
    await output.end()


class _Keeper:
    """An event writer that also keeps the response, before its client is told that it is complete."""

    def __init__(self, edge: Edge, body: ResponsesRequest, output: Output, items: list[Json]) -> None:
        self._store = edge.store if body.store is not False else None
        self._output = output
        self._items = items

    def pieces(self, pieces: list[Piece]) -> bytes:
        return self._output.pieces(pieces)

    async def end(self) -> bytes:
        data = await self._output.end()
        await self.keep()
        return data

    async def failed(self, error: BaseException) -> bytes:
        data = await self._output.failed(error)
        await self.keep()
        return data

    async def keep(self) -> None:
        if self._store is not None:
            await self._store.put(self._output.response, self._items)


async def _in_background(
    edge: Edge, link: Link, body: ResponsesRequest, response: Json, items: list[Json], arrival_s: float
) -> None:
    """Answer with the queued response and go on without the client."""
    admission = ExitStack()
    admission.enter_context(edge.admitted(1))
    task = asyncio.create_task(_run_background(edge, link, body, response, items, arrival_s))
    edge.background[response["id"]] = task

    def ended(task: "asyncio.Task[None]") -> None:
        admission.close()
        del edge.background[response["id"]]

    task.add_done_callback(ended)
    await _store(edge).put(response, items)
    await link.json(response)


async def _run_background(
    edge: Edge, link: Link, body: ResponsesRequest, response: Json, items: list[Json], arrival_s: float
) -> None:
    store = _store(edge)
    try:
        request, settings = await _prepare(edge, link, body, items, response["id"], arrival_s)
        response["status"] = "in_progress"
        await store.put(response, items)
        run = Run(edge, [request], settings, "responses")
        await _whole(run, Output(run, response, _wants_logprobs(body)))
    except asyncio.CancelledError:
        response["status"] = "cancelled"
        raise
    except MorticeError as error:
        response["status"] = "failed"
        response["error"] = {"code": error.code or "server_error", "message": error.message}
    except Exception as error:  # the task is its own boundary: nobody awaits it
        edge.log.error("fault", exc=error, request_id=response["id"])
        response["status"] = "failed"
        response["error"] = {"code": "server_error", "message": "the server failed; the log says why"}
    finally:
        await asyncio.shield(store.put(response, items))
