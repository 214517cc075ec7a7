"""From a folder or a file to a model that can run."""

import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from mortice.models.architectures import build
from mortice.models.causal_lm import CausalLM
from mortice.models.gguf import GGUFSource
from mortice.models.safetensors import SafetensorsSource
from mortice.models.source import Source
from mortice.specs.errors import RequestError
from mortice.specs.model import ModelSpec
from mortice.specs.model_config import read_model

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


def open_checkpoint(path: Path) -> tuple[ModelSpec, Source]:
    """The spec, and the tensors as a source that reads them when asked."""
    file = gguf_in(path)
    if file is not None:
        source = GGUFSource(file)
        spec = read_model(source.config)
        if divisors := source.rope_divisors():
            spec = msgspec.structs.replace(spec, rope=msgspec.structs.replace(spec.rope, divisors=divisors))
        return spec, source
    return read_model(read_config(path)), SafetensorsSource(path)


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that `path` is or holds; None for a Hugging Face folder."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise RequestError(f"{path}: a model is a folder or a .gguf file", param="model")
        return path
    if not path.is_dir():
        raise RequestError(f"{path}: no such file or folder", param="model")
    if (path / "config.json").is_file():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise RequestError(f"{path}: holds {len(found)} .gguf files, name one of them", param="model")
    if not found:
        raise RequestError(f"{path}: holds neither config.json nor a .gguf file", param="model")
    return found[0]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, with the end tokens of generation_config.json, which name more of them where both
    exist."""
    config = read_json(folder / "config.json")
    if (folder / "generation_config.json").is_file():
        generation = read_json(folder / "generation_config.json")
        if generation.get("eos_token_id") is not None:
            config["eos_token_id"] = generation["eos_token_id"]
    return config


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: cannot be read as JSON: {error}", param="model") from error
    if not isinstance(values, dict):
        raise RequestError(f"{path}: must hold a JSON object", param="model")
    return values
