"""What every model here is: token ids in, KV into the paged cache, logits out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from mortice.models.adapters import read_adapter
from mortice.models.builder import Builder, Piece
from mortice.models.checkpoint import open_checkpoint
from mortice.models.layers.rotary import Rotary
from mortice.models.source import Source, TensorsSource, check_source, text_part
from mortice.models.step import KVCache, StepInput
from mortice.ops.embedding import scale_rows
from mortice.ops.norm import rms_norm
from mortice.specs.errors import NotFound, RequestError
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
        self.adapters: set[str] = set()  # names of those loaded
        self.embedding: Tensor | None = None  # None: rows of the head
        if not spec.tie_embeddings:
            self.embedding = builder.matrix(self.embedding_name, spec.vocab_size, spec.hidden_size)
        rotary = Rotary(spec.rope, builder.dtype, builder.device)
        local = Rotary(spec.rope_local, builder.dtype, builder.device) if spec.rope_local else rotary
        self.layers = [
            self.build_layer(layer, local if spec.window(layer) else rotary)
            for layer in range(spec.num_layers)
        ]
        self.norm = builder.norm(self.norm_name, spec.hidden_size, spec.norm_offset)
        head = self.embedding_name.removesuffix(".weight") if spec.tie_embeddings else self.head_name
        self.head = builder.linear(
            [Piece(head, spec.vocab_size)],
            spec.hidden_size,
            form=builder.head_form,
            adaptable=False,
            lookup=spec.tie_embeddings,
        )

    @abstractmethod
    def build_layer(self, layer: int, rotary: Rotary) -> Layer: ...

    def ignored(self, name: str) -> bool:
        """Checkpoint tensors that this architecture does not read."""
        return name.endswith("rotary_emb.inv_freq")

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

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
        products = sum(linear.weight.nbytes * visits for linear, visits in self.builder.linears)
        return round(products) + sum(plain.nbytes for plain in self.builder.factors)

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of a token's matrix products, without attention's over the context."""
        sizes = ((math.prod(linear.weight.shape), visits) for linear, visits in self.builder.linears)
        plain = sum(factor.numel() for factor in self.builder.factors)
        return 2 * round(sum(size * visits for size, visits in sizes) + plain)

    def fill(self, source: Source) -> None:
        """Take every weight from the source. Raises RequestError, before anything is changed, if it does not
        fit."""
        source = self.adapt(text_part(source))
        check_source(source, self.builder.slots, self.unread)
        with torch.inference_mode():
            for slot in self.builder.slots:
                slot.fill(source)

    def adapt(self, source: Source) -> Source:
        """The source under the names that the slots want, where an architecture's checkpoints differ."""
        return source

    def unread(self, name: str) -> bool:
        return self.ignored(name) or (self.spec.tie_embeddings and name == f"{self.head_name}.weight")

    def update_weights(self, weights: str | Path | Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights in place by those of a checkpoint or of (Hugging Face name, tensor) pairs.

        Raises RequestError if a name is missing or unknown or a shape is wrong, and then the old weights are
        whole. Adapters stay. KV made by the old weights is the caller's to drop.
        """
        if isinstance(weights, str | Path):
            spec, source = open_checkpoint(Path(weights))
            if not same_shape(spec, self.spec):
                raise RequestError(f"{weights}: holds a model of another shape", param="weights")
        else:
            source = TensorsSource(dict(weights))
        self.fill(source)

    def drop_weights(self) -> None:
        """Give the memory of all matrices back; `update_weights` is then due before the next step."""
        for linear, _ in self.builder.linears:
            linear.drop()

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Make the PEFT LoRA adapter in `folder` available to rows that name it; an adapter of that name is
        replaced."""
        pairs = read_adapter(Path(folder), self.builder.parts, self.dtype, self.builder.device)
        self.detach(name)
        for linear, pair in pairs:
            linear.adapters.setdefault(name, []).append(pair)
        self.adapters.add(name)

    def unload_adapter(self, name: str) -> None:
        """Raises NotFound if it is not loaded."""
        if name not in self.adapters:
            raise NotFound(f"no adapter {name!r} is loaded", param="adapter")
        self.detach(name)

    def detach(self, name: str) -> None:
        self.adapters.discard(name)
        for linear, _ in self.builder.linears:
            linear.adapters.pop(name, None)

    @torch.inference_mode()
    def forward(self, step: StepInput, kv: KVCache) -> Tensor:
        """Logits [R, vocab] float32 of step.logit_rows; the KV of all T tokens is written to the cache.

        Raises NotFound if a row names an adapter that is not loaded.
        """
        for chosen in step.adapters:
            if chosen.name not in self.adapters:
                raise NotFound(f"no adapter {chosen.name!r} is loaded", param="adapter")
        x = self.embed(step.input_ids)
        for layer in self.layers:
            x = layer(x, step, kv)
        if not len(step.logit_rows):
            return x.new_empty(0, self.spec.vocab_size, dtype=torch.float32)
        if len(step.logit_rows) != len(x):
            x = x.index_select(0, step.logit_rows)
        return self.head(rms_norm(x, self.norm, self.spec.norm_eps), step).float()

    def embed(self, ids: Tensor) -> Tensor:
        """[T, hidden] of `ids` [T]."""
        if self.embedding is None:
            return scale_rows(self.head.rows(ids), self.spec.embedding_scale)
        return scale_rows(self.embedding.index_select(0, ids), self.spec.embedding_scale)


def same_shape(one: ModelSpec, other: ModelSpec) -> bool:
    """Equal but for what does not change the computation."""
    neutral = {"dtype": "", "eos_token_ids": (), "bos_token_id": None}
    return msgspec.structs.replace(one, **neutral) == msgspec.structs.replace(other, **neutral)
