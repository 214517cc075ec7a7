"""One step on the device: the plan becomes tensors, the model runs, logits come back."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mortice.models.step import AdapterRows, KVCache, StepInput
from mortice.sched.sequence import Chunk, StepPlan


class Model(Protocol):
    """What the engine needs of a model; `mortice.models` and `mortice.testing` provide it."""

    @property
    def num_layers(self) -> int: ...
    @property
    def kv_planes(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def flops_per_token(self) -> int: ...

    def forward(self, step: StepInput, kv: KVCache) -> Tensor:
        """Logits [R, vocab] float32 of step.logit_rows."""

    def load_adapter(self, name: str, folder: str) -> None: ...
    def unload_adapter(self, name: str) -> None: ...
    def update_weights(self, source: str) -> None: ...
    def drop_weights(self) -> None:
        """Give the weights' memory back; `update_weights` brings them again."""


@dataclass(slots=True, frozen=True)
class LogitRows:
    """Which rows of a step's logits belong to a chunk: the last `count` tokens of it."""

    chunk: Chunk
    first: int
    count: int


class Runner:
    """Holds the model and its cache; knows plans, not requests."""

    def __init__(self, model: Model, kv: KVCache, *, device: torch.device, deterministic: bool) -> None:
        self.model = model
        self.kv = kv
        self.device = device
        self.deterministic = deterministic

    def copy_blocks(self, copies: Iterable[tuple[int, int]]) -> None:
        for source, target in copies:
            self.kv.memory[target].copy_(self.kv.memory[source])

    def prepare(self, plan: StepPlan) -> tuple[StepInput, list[LogitRows]]:
        """The ragged batch of a plan, and which rows of its logits to read."""
        block_size = self.kv.block_size
        ids: list[int] = []
        positions: list[np.ndarray] = []
        slots: list[np.ndarray] = []
        query_start = [0]
        context_lens = []
        wanted: list[int] = []
        rows: list[LogitRows] = []
        adapters: dict[str, list[int]] = {}
        widest = max(len(chunk.sequence.blocks) for chunk in plan.chunks)
        tables = np.zeros((len(plan.chunks), widest), dtype=np.int64)
        for s, chunk in enumerate(plan.chunks):
            sequence, start, end = chunk.sequence, chunk.start, chunk.start + chunk.count
            known = len(sequence.token_ids)
            ids += sequence.token_ids[start:end]
            if chunk.num_drafts:
                ids += sequence.drafts[max(0, start - known) : end - known]
            where = np.arange(start, end, dtype=np.int64)
            table = tables[s]
            table[: len(sequence.blocks)] = sequence.blocks
            positions.append(where)
            slots.append(table[where // block_size] * block_size + where % block_size)
            first = query_start[-1]
            query_start.append(first + chunk.count)
            context_lens.append(end)
            count = self._num_logit_rows(chunk)
            if count:
                rows.append(LogitRows(chunk, len(wanted), count))
                wanted += range(query_start[-1] - count, query_start[-1])
            if sequence.request.adapter:
                adapters.setdefault(sequence.request.adapter, []).extend(range(first, query_start[-1]))
        step = StepInput(
            input_ids=self._tensor(np.array(ids, dtype=np.int64)),
            positions=self._tensor(np.concatenate(positions)),
            query_start=query_start,
            context_lens=context_lens,
            block_tables=self._tensor(tables),
            slots=self._tensor(np.concatenate(slots)),
            logit_rows=self._tensor(np.array(wanted, dtype=np.int64)),
            adapters=tuple(AdapterRows(name, self._tensor(np.array(r))) for name, r in adapters.items()),
            deterministic=self.deterministic,
        )
        return step, rows

    def forward(self, step: StepInput) -> Tensor:
        """Logits [R, vocab] float32, where the model is."""
        with torch.inference_mode():
            return self.model.forward(step, self.kv)

    def _num_logit_rows(self, chunk: Chunk) -> int:
        """The newest token's and the drafts'; every row of a prompt whose log-probabilities are asked for."""
        sequence = chunk.sequence
        if sequence.request.sampling.prompt_logprobs is not None and chunk.start < sequence.prompt_len:
            return chunk.count
        return 1 + chunk.num_drafts if chunk.samples else 0

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)
