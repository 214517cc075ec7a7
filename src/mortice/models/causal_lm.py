"""What every model here is: token ids in, KV into the paged cache, logits out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from mortice.models.builder import Builder, Piece
from mortice.models.layers.rotary import Rotary
from mortice.models.source import Source, check_source
from mortice.models.step import KVCache, StepInput
from mortice.ops.embedding import embed
from mortice.ops.norm import rms_norm
from mortice.specs.model import ModelSpec

Layer = Callable[[Tensor, StepInput, KVCache], Tensor]


class CausalLM(ABC):
    """A decoder with its weights. Built empty, filled by `fill`; used by one thread at a time."""

    embedding_name = "model.embed_tokens.weight"
    norm_name = "model.norm.weight"
    head_name = "lm_head"

    def __init__(self, spec: ModelSpec, builder: Builder) -> None:
        self.spec = spec
        self.dtype = builder.dtype
        self.builder = builder
        self.embedding = builder.matrix(self.embedding_name, spec.vocab_size, spec.hidden_size)
        rotary = Rotary(spec.rope, builder.dtype, builder.device)
        local = Rotary(spec.rope_local, builder.dtype, builder.device) if spec.rope_local else rotary
        self.layers = [
            self.build_layer(layer, local if spec.window(layer) else rotary)
            for layer in range(spec.num_layers)
        ]
        self.norm = builder.norm(self.norm_name, spec.hidden_size, spec.norm_offset)
        head = self.embedding_name.removesuffix(".weight") if spec.tie_embeddings else self.head_name
        self.head = builder.linear([Piece(head, spec.vocab_size)], spec.hidden_size, form=builder.head_form)

    @abstractmethod
    def build_layer(self, layer: int, rotary: Rotary) -> Layer: ...

    def ignored(self, name: str) -> bool:
        """Checkpoint tensors that this architecture does not read."""
        return name.endswith("rotary_emb.inv_freq")

    @property
    def num_layers(self) -> int:
        return self.spec.num_layers

    @property
    def kv_planes(self) -> tuple[tuple[int, int], ...]:
        """(heads, dim) of each plane of a layer's KV cache."""
        return self.spec.attention.kv_planes

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a decode step of one token reads."""
        return round(sum(linear.weight.nbytes * visits for linear, visits in self.builder.linears))

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of a token's matrix products, without attention's over the context."""
        sizes = ((math.prod(linear.weight.shape), visits) for linear, visits in self.builder.linears)
        return round(sum(2 * size * visits for size, visits in sizes))

    def fill(self, source: Source) -> None:
        """Take every weight from the source. Raises RequestError, before anything is changed, if it does not
        fit."""
        check_source(source, self.builder.slots, self.unread)
        with torch.inference_mode():
            for slot in self.builder.slots:
                slot.fill(source)

    def unread(self, name: str) -> bool:
        return self.ignored(name) or (self.spec.tie_embeddings and name == f"{self.head_name}.weight")

    @torch.inference_mode()
    def forward(self, step: StepInput, kv: KVCache) -> Tensor:
        """Logits [R, vocab] float32 of step.logit_rows; the KV of all T tokens is written to the cache."""
        x = embed(self.embedding, step.input_ids, self.spec.embedding_scale)
        for layer in self.layers:
            x = layer(x, step, kv)
        if len(step.logit_rows) != len(x):
            x = x.index_select(0, step.logit_rows)
        return self.head(rms_norm(x, self.norm, self.spec.norm_eps), step).float()
