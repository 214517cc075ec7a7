"""Admin routes: look at the workers, and change what they do. guard.py says who may."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from mortice.cluster.api import Division
from mortice.serve.answers import Done
from mortice.serve.api import (
    AdminRequest,
    LoadAdapterRequest,
    RolesRequest,
    SleepRequest,
    UnloadAdapterRequest,
    WeightsRequest,
)
from mortice.serve.edge import Edge
from mortice.serve.link import Link
from mortice.specs.errors import NotFound, RequestError


async def list_workers(edge: Edge, link: Link) -> None:
    """A JSON list, one entry a worker."""
    await link.json(edge.cluster.workers())


async def deployment(edge: Edge, link: Link) -> None:
    """The deployment document the server runs, and what of the edge's options is no secret."""
    known = edge.options.deployment
    if known is None:
        raise NotFound("this server was started without a deployment document")
    await link.json(known)


def verb(name: str) -> Callable[[Edge, Link, AdminRequest], Awaitable[None]]:
    """A route that passes one verb on to the cluster."""

    async def handle(edge: Edge, link: Link, body: AdminRequest) -> None:
        await _call(edge, link, name, {}, body.worker_id)

    return handle


async def sleep(edge: Edge, link: Link, body: SleepRequest) -> None:
    await _call(edge, link, "sleep", {"level": body.level or 1}, body.worker_id)


async def update_weights(edge: Edge, link: Link, body: WeightsRequest) -> None:
    await _call(edge, link, "update_weights", {"path": body.path, "version": body.version})


async def load_adapter(edge: Edge, link: Link, body: LoadAdapterRequest) -> None:
    info = edge.cluster.model
    if body.lora_name == info.name or body.lora_name in info.adapters:
        raise RequestError(f"the name {body.lora_name!r} is taken", param="lora_name")
    if not os.path.exists(body.lora_path):
        raise RequestError(f"there is no adapter at {body.lora_path}", param="lora_path")
    await _call(edge, link, "load_adapter", {"name": body.lora_name, "path": body.lora_path})


async def unload_adapter(edge: Edge, link: Link, body: UnloadAdapterRequest) -> None:
    if body.lora_name not in edge.cluster.model.adapters:
        raise NotFound(f"no adapter is named {body.lora_name!r}", param="lora_name")
    await _call(edge, link, "unload_adapter", {"name": body.lora_name})


async def roles(edge: Edge, link: Link) -> None:
    """Who wears which role, by which policy, and the last turns of the control loop."""
    await link.json(edge.cluster.roles())


async def set_roles(edge: Edge, link: Link, body: RolesRequest) -> None:
    """Change one worker's role, or divide all anew. Nothing is reloaded: it holds when this answers."""
    counts = (body.prefill, body.decode, body.mixed)
    if body.worker_id is not None and body.role is not None and counts == (None, None, None):
        edge.cluster.wear(body.worker_id, body.role)
    elif body.worker_id is None and body.role is None and counts != (None, None, None):
        edge.cluster.divide(Division(*(count or 0 for count in counts)))
    else:
        raise RequestError(
            "give worker_id and role, or how many workers shall be prefill, decode and mixed",
            param="worker_id",
        )
    edge.log.info("admin", verb="roles", worker_id=body.worker_id)
    await link.json(edge.cluster.roles())


async def drain(edge: Edge, link: Link, body: AdminRequest) -> None:
    """Take no new requests and answer when those in flight have ended, or after the drain limit."""
    if body.worker_id is not None:
        raise RequestError("the whole server drains; worker_id has no meaning here", param="worker_id")
    ended = await edge.drain(edge.options.admission.drain_s)
    await link.json(Done(state="drained" if ended else "draining"))


async def _call(
    edge: Edge, link: Link, name: str, args: dict[str, Any], worker_id: str | None = None
) -> None:
    workers = await edge.cluster.call(name, args, worker_id)
    edge.log.info("admin", verb=name, worker_id=worker_id)
    states = {worker.state for worker in edge.cluster.workers()}
    await link.json(Done(state=",".join(sorted(states)), workers=msgspec.to_builtins(workers)))
