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

    `dtype` is that of activations, KV and whatever weights are not quantised. `quantize`: "int8" and "int4"
    quantise at load, in groups of 32 (without compiled kernels int8 has a scale a row); "keep" leaves a GGUF
    file's Q4_0, Q4_1 and Q4_K matrices as they are, holds its other quantised ones in groups of 8 bits, which
    is what Q8_0 is (without compiled kernels: as `dtype`), and reads all else as `dtype`. Raises RequestError,
    one line with file and tensor, for whatever does not fit together.
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
