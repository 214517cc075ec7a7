"""A model without weights whose every answer depends on every token of KV that it should have read.

It writes a fingerprint of each token and position into the paged cache, and its logits hang on the sum over the whole
context, read back through the block tables. One wrong, stale or misplaced block changes the text. Tests of the
engine, of hand-overs and of recovery run on it in milliseconds; `reference_tokens` says what is right.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mortice.models.step import KVCache, StepInput
from mortice.specs.worker_times import WorkerTimes

FAKE_SCHEME = "fake:"  # a model path that begins so asks for this model
FAKE_TIMED = "fake:timed"  # its steps take as long as the deployment's `cluster.decode_times` say
FAKE_VOCAB = 257
_DIM = 4


class FakeModel:
    """Greedy or sampled decoding works; logits are float32 [R, 257]. Token 0 is the end of text."""

    num_layers = 2
    kv_planes = ((1, _DIM), (1, _DIM))
    vocab_size = FAKE_VOCAB
    weight_bytes = 0
    flops_per_token = 0
    max_context = 4096
    eos_token_ids = (0,)

    def __init__(self, version: int = 0) -> None:
        self.version = version
        self._frequencies = torch.arange(1, FAKE_VOCAB + 1, dtype=torch.float64) * 0.7548776662

    def forward(self, step: StepInput, kv: KVCache) -> Tensor:
        marks = _fingerprints(step.input_ids, step.positions)
        blocks, offsets = step.slots // kv.block_size, step.slots % kv.block_size
        for planes in kv.planes:
            for plane in planes:
                plane[blocks, offsets, 0] = marks.to(plane.dtype)
        wanted = set(step.logit_rows.tolist())
        rows = []
        for s, context_len in enumerate(step.context_lens):
            positions = torch.arange(context_len)
            table = step.block_tables[s][positions // kv.block_size]
            seen = [
                plane[table, positions % kv.block_size, 0].double()
                for planes in kv.planes
                for plane in planes
            ]
            total = torch.stack(seen).sum((0, 2)).cumsum(0)
            first = context_len - (step.query_start[s + 1] - step.query_start[s])
            rows += [
                self._logits(total[first + i - step.query_start[s]])
                for i in range(step.query_start[s], step.query_start[s + 1])
                if i in wanted
            ]
        return torch.stack(rows) if rows else torch.empty(0, FAKE_VOCAB)

    def load_adapter(self, name: str, folder: str) -> None:
        """Adapters change nothing here."""

    def unload_adapter(self, name: str) -> None:
        """Adapters change nothing here."""

    def update_weights(self, source: str) -> None:
        """`source` is a number: each gives another text."""
        self.version = int(source.rpartition(":")[2] or 0)

    def drop_weights(self) -> None:
        """There are none."""

    def _logits(self, total: Tensor) -> Tensor:
        # Rounding makes the sum exact whatever the order of the additions, so every path agrees to the bit.
        phase = torch.round(total * 64) / 64 + self.version
        logits = 4 * torch.cos(phase * self._frequencies)
        logits[0] = -6.0  # an end of text is possible when sampling, and never the greedy choice
        return logits.float()


class TimedFakeModel(FakeModel):
    """Takes as long over a step as an accelerator would: a deployment rehearsed with real workers, real hand-overs and real
    decisions, on a machine without accelerators."""

    def __init__(self, times: WorkerTimes) -> None:
        super().__init__()
        self._times = times

    def forward(self, step: StepInput, kv: KVCache) -> Tensor:
        due_s = time.monotonic() + step_seconds(step, self._times)
        logits = super().forward(step, kv)
        time.sleep(max(0.0, due_s - time.monotonic()))
        return logits


def step_seconds(step: StepInput, times: WorkerTimes) -> float:
    """A sequence with one new token decodes, one with more is a prompt's chunk."""
    tokens = square = batch = context = 0
    for s, length in enumerate(step.context_lens):
        new = step.query_start[s + 1] - step.query_start[s]
        if new == 1:
            batch, context = batch + 1, context + length
        else:
            tokens, square = tokens + new, square + length**2 - (length - new) ** 2
    return times.mixed_s(tokens, square, batch, context)


def _fingerprints(token_ids: Tensor, positions: Tensor) -> Tensor:
    """[T, 4], multiples of 1/64 in [0, 4): exact in any dtype with eight bits of significand."""
    mixed = (token_ids + 1) * 40503 + (positions + 1) * 30011
    parts = [(mixed // divisor) % 256 for divisor in (1, 7, 61, 251)]
    return torch.stack(parts, -1).double() / 64


def reference_tokens(prompt: Sequence[int], count: int, version: int = 0) -> list[int]:
    """The greedy continuation, computed without any cache."""
    model = FakeModel(version)
    tokens = list(prompt)
    for _ in range(count):
        ids = torch.tensor(tokens)
        total = _fingerprints(ids, torch.arange(len(tokens))).sum() * (
            model.num_layers * len(model.kv_planes)
        )
        tokens.append(int(model._logits(total).argmax()))
    return tokens[len(prompt) :]
