"""Runs a model without an engine: one step at a time over a cache of shuffled blocks. For tests and
measurements."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mortice.models.causal_lm import CausalLM
from mortice.models.step import AdapterRows, KVCache, StepInput
from mortice.specs.kv import DTYPE_BYTES


@dataclass
class Text:
    """One sequence: the tokens whose KV is in the cache, and the blocks that hold it."""

    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    adapter: str | None = None


class Driver:
    """Owns a cache of `num_blocks` blocks and hands them out in an order shuffled by `seed`."""

    def __init__(self, model: CausalLM, num_blocks: int, *, block_size: int = 16, seed: int = 0) -> None:
        self.model = model
        self.block_size = block_size
        planes, layers = model.kv_planes, model.num_layers
        width = DTYPE_BYTES[str(model.dtype).removeprefix("torch.")] * sum(h * d for h, d in planes)
        memory = torch.zeros(num_blocks, layers * width * block_size, dtype=torch.uint8)
        self.kv = KVCache(memory, num_layers=layers, planes=planes, block_size=block_size, dtype=model.dtype)
        self.free = list(range(num_blocks))
        random.Random(seed).shuffle(self.free)

    def step_input(
        self,
        work: Sequence[tuple[Text, Sequence[int]]],
        *,
        all_logits: bool = False,
        deterministic: bool = False,
    ) -> StepInput:
        """Append tokens to texts, giving each the blocks it needs."""
        starts, contexts = [0], []
        slots: list[int] = []
        positions: list[int] = []
        for text, new in work:
            first = len(text.tokens)
            text.tokens.extend(new)
            while len(text.blocks) * self.block_size < len(text.tokens):
                text.blocks.append(self.free.pop())
            span = range(first, len(text.tokens))
            positions += span
            slots += [text.blocks[p // self.block_size] * self.block_size + p % self.block_size for p in span]
            starts.append(starts[-1] + len(new))
            contexts.append(len(text.tokens))
        widest = max(len(text.blocks) for text, _ in work)
        tables = [text.blocks + [0] * (widest - len(text.blocks)) for text, _ in work]
        rows = list(range(starts[-1])) if all_logits else [end - 1 for end in starts[1:]]
        return StepInput(
            input_ids=torch.tensor([token for _, new in work for token in new]),
            positions=torch.tensor(positions),
            query_start=starts,
            context_lens=contexts,
            block_tables=torch.tensor(tables),
            slots=torch.tensor(slots),
            logit_rows=torch.tensor(rows),
            adapters=adapter_rows([text for text, _ in work], starts),
            deterministic=deterministic,
        )

    def step(
        self,
        work: Sequence[tuple[Text, Sequence[int]]],
        *,
        all_logits: bool = False,
        deterministic: bool = False,
    ) -> Tensor:
        """Logits of each text's last new token, or of all new tokens."""
        return self.model.forward(
            self.step_input(work, all_logits=all_logits, deterministic=deterministic), self.kv
        )

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        num_new: int,
        *,
        chunk: int = 512,
        stagger: int = 1,
        deterministic: bool = False,
        adapters: Sequence[str | None] = (),
    ) -> tuple[list[list[int]], list[Tensor]]:
        """Continue every prompt by `num_new` best tokens; also the logits behind each of them, [num_new,
        vocab].

        Prompt i joins at step i * stagger and is read `chunk` tokens a step, so steps mix prompt chunks and
        decoding.
        """
        texts = [Text(adapter=adapters[i] if adapters else None) for i in range(len(prompts))]
        pending = [list(prompt) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        logits: list[list[Tensor]] = [[] for _ in prompts]
        time = 0
        while any(len(answer) < num_new for answer in answers):
            live = [i for i in range(len(prompts)) if i * stagger <= time and len(answers[i]) < num_new]
            work = [(texts[i], pending[i][:chunk]) for i in live]
            for i, found in zip(
                live, self.step(work, deterministic=deterministic) if live else (), strict=True
            ):
                pending[i] = pending[i][chunk:]
                if not pending[i]:
                    logits[i].append(found)
                    answers[i].append(int(found.argmax()))
                    pending[i] = [answers[i][-1]]
            time += 1
        for text in texts:
            self.free.extend(text.blocks)
        return answers, [torch.stack(rows) for rows in logits]


def adapter_rows(texts: Sequence[Text], starts: Sequence[int]) -> tuple[AdapterRows, ...]:
    rows: dict[str, list[int]] = {}
    for text, first, end in zip(texts, starts, starts[1:], strict=False):
        if text.adapter is not None:
            rows.setdefault(text.adapter, []).extend(range(first, end))
    return tuple(AdapterRows(name, torch.tensor(chosen)) for name, chosen in rows.items())
