"""From a folder or a file to a model that can run."""

from pathlib import Path
from typing import Literal

import torch

from mortice.models.architectures import build
from mortice.models.causal_lm import CausalLM
from mortice.models.checkpoint import open_checkpoint
from mortice.models.gguf import GGUFSource
from mortice.specs.errors import RequestError
from mortice.specs.model import ModelSpec

Quantize = Literal["none", "int8", "int4", "keep"]


def load_model(
    path: str | Path, *, dtype: torch.dtype, quantize: Quantize = "none", device: str = "cpu"
) -> CausalLM:
    """The model in `path`: a Hugging Face folder, a .gguf file, or a folder that holds one.

    `dtype` is that of activations, KV and whatever weights are not quantised. `quantize`: "int8" (a scale a
    row) and "int4" (groups of 32) quantise at load; "keep" leaves a GGUF file's Q4_0 and Q4_1 matrices in 4
    bits and reads all else as `dtype`. Raises RequestError, one line with file and tensor, for whatever does
    not fit together.
    """
    spec, source = open_checkpoint(Path(path))
    if quantize == "keep" and not isinstance(source, GGUFSource):
        raise RequestError(f"quantize=keep needs a GGUF file, {path} holds safetensors", param="quantize")
    model = build(spec, dtype=dtype, quantize=quantize, device=device)
    model.fill(source)
    return model


def read_spec(path: str | Path) -> ModelSpec:
    """What `load_model(path)` would build, from headers alone."""
    return open_checkpoint(Path(path))[0]
