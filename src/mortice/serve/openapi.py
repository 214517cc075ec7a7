"""GET /openapi.json: the routes and the schemas of their bodies, made from the structs that check them."""

from functools import cache
from typing import Any

import msgspec

from mortice import __version__
from mortice.cluster.api import Roles, WorkerInfo
from mortice.serve import answers, api
from mortice.serve.edge import Edge
from mortice.serve.errors import ErrorBody
from mortice.serve.link import JSON, Link
from mortice.specs.deployment import Deployment

Json = dict[str, Any]

_ANY: Json = {"type": "object"}
_RESPONSE_ID: Json = {"name": "response_id", "in": "path", "required": True, "schema": {"type": "string"}}
_MODEL_ID: Json = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}

# (method, path, summary, body, answer, parameters)
_Route = tuple[str, str, str, Any, Any, tuple[Json, ...]]

_ROUTES: tuple[_Route, ...] = (
    ("post", "/v1/chat/completions", "Answer a chat", api.ChatRequest, answers.ChatCompletion, ()),
    ("post", "/v1/completions", "Complete prompts", api.CompletionRequest, answers.Completion, ()),
    ("post", "/v1/responses", "Create a response", api.ResponsesRequest, None, ()),
    ("get", "/v1/responses/{response_id}", "Fetch a response", None, None, (_RESPONSE_ID,)),
    ("delete", "/v1/responses/{response_id}", "Delete a response", None, None, (_RESPONSE_ID,)),
    ("get", "/v1/responses/{response_id}/input_items", "What led to it", None, None, (_RESPONSE_ID,)),
    ("post", "/v1/responses/{response_id}/cancel", "End a background response", None, None, (_RESPONSE_ID,)),
    ("get", "/v1/models", "The model and its adapters", None, answers.ModelList, ()),
    ("get", "/v1/models/{model}", "One of them", None, answers.Model, (_MODEL_ID,)),
    ("post", "/generate", "Token ids in, token ids out", api.GenerateRequest, answers.Generated, ()),
    ("post", "/tokenize", "Text or a chat as token ids", api.TokenizeRequest, answers.Tokenized, ()),
    ("post", "/detokenize", "Token ids as text", api.DetokenizeRequest, answers.Detokenized, ()),
    ("get", "/health", "Whether a request can be admitted", None, answers.Health, ()),
    ("get", "/ready", "The same", None, answers.Health, ()),
    ("get", "/version", "Version of the server", None, answers.Version, ()),
    ("post", "/v1/load_lora_adapter", "Load an adapter", api.LoadAdapterRequest, answers.Done, ()),
    ("post", "/v1/unload_lora_adapter", "Forget an adapter", api.UnloadAdapterRequest, answers.Done, ()),
    ("get", "/admin/workers", "The workers", None, list[WorkerInfo], ()),
    ("get", "/admin/deployment", "The deployment document", None, Deployment, ()),
    ("get", "/admin/roles", "Who wears which role, and why", None, Roles, ()),
    ("post", "/admin/roles", "Change roles", api.RolesRequest, Roles, ()),
    ("post", "/admin/pause", "Stop between steps", api.AdminRequest, answers.Done, ()),
    ("post", "/admin/resume", "Go on", api.AdminRequest, answers.Done, ()),
    ("post", "/admin/sleep", "Give memory back", api.SleepRequest, answers.Done, ()),
    ("post", "/admin/wake", "Take it again", api.AdminRequest, answers.Done, ()),
    ("post", "/admin/weights", "Load other weights", api.WeightsRequest, answers.Done, ()),
    ("post", "/admin/reset_prefix_cache", "Forget cached blocks", api.AdminRequest, answers.Done, ()),
    ("post", "/admin/check_integrity", "Check every invariant", api.AdminRequest, answers.Done, ()),
    ("post", "/admin/drain", "Take no new requests", api.AdminRequest, answers.Done, ()),
)


async def openapi(edge: Edge, link: Link) -> None:
    await link.answer(_document(), headers=JSON)


@cache
def _document() -> bytes:
    return msgspec.json.encode(document())


def document() -> Json:
    """The OpenAPI 3.1 document."""
    kinds = [kind for route in _ROUTES for kind in route[3:5] if kind is not None]
    schemas, components = msgspec.json.schema_components(
        [*kinds, ErrorBody], ref_template="#/components/schemas/{name}"
    )
    of = {str(kind): schema for kind, schema in zip([*kinds, ErrorBody], schemas, strict=True)}
    paths: Json = {}
    for method, path, summary, body, answer, parameters in _ROUTES:
        operation: Json = {
            "summary": summary,
            "operationId": f"{method}_{path.strip('/').replace('/', '_').replace('{', '').replace('}', '')}",
            "parameters": list(parameters),
            "responses": {
                "200": _content(
                    "Done", _ANY if answer is None else of[str(answer)], streams=body in _STREAMED
                ),
                "4XX": _content("The request cannot be served as it stands", of[str(ErrorBody)]),
                "5XX": _content("The server cannot serve it now", _ANY),
            },
        }
        if body is not None:
            optional = body in (api.AdminRequest, api.SleepRequest)
            operation["requestBody"] = {
                "required": not optional,
                "content": {"application/json": {"schema": of[str(body)]}},
            }
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Mortice", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


_STREAMED = (api.ChatRequest, api.CompletionRequest, api.ResponsesRequest, api.GenerateRequest)


def _content(description: str, schema: Json, streams: bool = False) -> Json:
    content: Json = {"application/json": {"schema": schema}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": description, "content": content}
