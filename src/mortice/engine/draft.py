"""Drafts from a small model that runs ahead of the large one, with a paged cache of its own."""

from dataclasses import dataclass, field

import numpy as np
import torch

from mortice.engine.runner import Model
from mortice.engine.sampler import draw
from mortice.kv.pool import BlockPool
from mortice.models.load import load_model
from mortice.models.step import KVCache, StepInput
from mortice.sched.sequence import Sequence
from mortice.specs.errors import RequestError
from mortice.specs.kv import KVLayout

BLOCK_SIZE = 16


@dataclass(slots=True)
class _Track:
    """One sequence as the draft model knows it: the tokens whose KV it has, true ones and its own guesses."""

    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)


class ModelDrafter:
    """Implements Drafter. Guesses are drawn with the very number that will draw the true token, so that a draft model
    of the same mind as the large one is believed also when sampling."""

    def __init__(self, model: Model, *, dtype: str, num_blocks: int) -> None:
        self._model = model
        layout = KVLayout(
            num_layers=model.num_layers,
            planes=model.kv_planes,
            block_size=BLOCK_SIZE,
            dtype=dtype,
            model="draft",
        )
        self._pool = BlockPool(num_blocks)
        self._kv = KVCache(
            torch.zeros(num_blocks, layout.block_bytes, dtype=torch.uint8),
            num_layers=layout.num_layers,
            planes=layout.planes,
            block_size=BLOCK_SIZE,
            dtype=getattr(torch, dtype),
        )
        self._tracks: dict[Sequence, _Track] = {}

    @classmethod
    def load(cls, path: str, *, dtype: str, vocab_size: int, num_blocks: int = 1024) -> "ModelDrafter":
        """Raises RequestError for a model of another vocabulary: its guesses would mean nothing."""
        model = load_model(path, dtype=getattr(torch, dtype))
        if model.vocab_size != vocab_size:
            raise RequestError(
                f"the draft model has {model.vocab_size} tokens, the model {vocab_size}; they must share a tokenizer",
                param="speculation.draft_model",
            )
        return cls(model, dtype=dtype, num_blocks=num_blocks)

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[list[int]]:
        drafts: dict[Sequence, list[int]] = {s: [] for s in sequences}
        ahead = [
            (s, limit)
            for s, limit in zip(sequences, limits, strict=True)
            if limit > 0 and self._has_room(s, limit)
        ]
        while ahead:
            for (sequence, _), token in zip(
                ahead, self._next([(s, drafts[s]) for s, _ in ahead]), strict=True
            ):
                drafts[sequence].append(token)
            ahead = [(s, limit) for s, limit in ahead if len(drafts[s]) < limit]
        return [drafts[s] for s in sequences]

    def forget(self, sequence: Sequence) -> None:
        track = self._tracks.pop(sequence, None)
        if track is not None:
            self._pool.release(track.blocks)

    def _has_room(self, sequence: Sequence, limit: int) -> bool:
        track = self._tracks.setdefault(sequence, _Track())
        missing = -(-(len(sequence.token_ids) + limit) // BLOCK_SIZE) - len(track.blocks)
        new = self._pool.allocate(max(0, missing))
        if new is None:
            return False
        track.blocks += new
        return True

    def _next(self, ahead: list[tuple[Sequence, list[int]]]) -> list[int]:
        """Feed each sequence what its track lacks, and draw one token after it."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        query_start, context_lens = [0], []
        tables = np.zeros((len(ahead), max(len(self._tracks[s].blocks) for s, _ in ahead)), dtype=np.int64)
        for row, (sequence, drafts) in enumerate(ahead):
            track = self._tracks[sequence]
            tokens = sequence.token_ids + drafts
            start = min(_common_prefix(track.tokens, tokens), len(tokens) - 1)
            tables[row, : len(track.blocks)] = track.blocks
            ids += tokens[start:]
            where = range(start, len(tokens))
            positions += where
            slots += [track.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in where]
            query_start.append(len(ids))
            context_lens.append(len(tokens))
            track.tokens = tokens
        step = StepInput(
            input_ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            query_start=query_start,
            context_lens=context_lens,
            block_tables=torch.from_numpy(tables),
            slots=torch.tensor(slots),
            logit_rows=torch.tensor(query_start[1:]) - 1,
        )
        with torch.inference_mode():
            logits = self._model.forward(step, self._kv)
        return draw(
            logits,
            [sequence.request.sampling for sequence, _ in ahead],
            [(sequence.index, len(sequence.token_ids) + len(drafts)) for sequence, drafts in ahead],
        )


def _common_prefix(known: list[int], tokens: list[int]) -> int:
    """Only guesses at the end can be wrong, so compare from there."""
    size = min(len(known), len(tokens))
    while size and known[size - 1] != tokens[size - 1]:
        size -= 1
    return size
