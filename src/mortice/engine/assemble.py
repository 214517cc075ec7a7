"""Puts an engine together from its parts; the worker process and the tests both do it here."""

import time
from collections.abc import Callable
from typing import Any

import torch

from mortice.engine.core import Engine
from mortice.engine.guided import GrammarCompiler
from mortice.engine.handoff import Handoff
from mortice.engine.ledger import Ledger
from mortice.engine.mirror import HostMirror
from mortice.engine.runner import Model, Runner
from mortice.engine.speculate import Drafter, NgramDrafter
from mortice.kv.leases import LeaseTable
from mortice.kv.pool import BlockPool
from mortice.models.step import KVCache
from mortice.sched.batching import BatchScheduler
from mortice.sched.prefill_order import order_of
from mortice.specs.deployment import Deployment
from mortice.specs.kv import KVLayout
from mortice.transport.base import KVTransport, Pool


def layout_of(model: Model, *, block_size: int, dtype: str, identity: str) -> KVLayout:
    return KVLayout(
        num_layers=model.num_layers,
        planes=model.kv_planes,
        block_size=block_size,
        dtype=dtype,
        model=identity,
    )


def assemble(
    model: Model,
    layout: KVLayout,
    memory: Pool,
    transport: KVTransport,
    deployment: Deployment,
    *,
    worker_id: str,
    eos_token_ids: list[int],
    max_context: int,
    load_tokenizer: Callable[[], Any],
    wake: Callable[[], None],
    device: torch.device,
    drafter: Drafter | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    """`memory` holds the pool's bytes on the host. On another device the model gets a pool of its own there, and the
    host's is its mirror for hand-overs."""
    limits, speculation = deployment.limits, deployment.speculation
    pool = BlockPool(memory.address.num_blocks, memory.generations)
    space = memory.space if deployment.transfer.mode == "map" and device.type == "cpu" else None
    blocks, mirror = torch.from_numpy(memory.blocks if space is None else space.blocks), None
    if device.type != "cpu":
        blocks = torch.zeros(blocks.shape, dtype=torch.uint8, device=device)
        mirror = HostMirror(blocks, memory.blocks)
    kv = KVCache(
        blocks,
        num_layers=layout.num_layers,
        planes=layout.planes,
        block_size=layout.block_size,
        dtype=getattr(torch, layout.dtype),
    )
    if drafter is None and speculation is not None and speculation.method == "ngram":
        drafter = NgramDrafter(speculation.ngram)
    return Engine(
        runner=Runner(model, kv, device=device, deterministic=deployment.deterministic),
        scheduler=BatchScheduler(
            pool,
            block_size=limits.block_size,
            token_budget=limits.token_budget,
            max_num_seqs=limits.max_num_seqs,
            order=order_of(limits),
        ),
        pool=pool,
        handoff=Handoff(
            worker_id=worker_id,
            pool=pool,
            memory=memory,
            transport=transport,
            leases=LeaseTable(deployment.transfer.lease_s),
            push=deployment.transfer.mode == "push",
            mirror=mirror,
            space=space,
            wake=wake,
        ),
        ledger=Ledger(
            deployment.ledger, worker_id, model.weight_bytes, layout.token_bytes, model.flops_per_token
        ),
        grammars=GrammarCompiler(load_tokenizer, model.vocab_size),
        drafter=drafter,
        max_draft=speculation.max_draft if speculation else 0,
        eos_token_ids=eos_token_ids,
        max_context=max_context,
        model_identity=layout.digest(),
        clock=clock,
    )
