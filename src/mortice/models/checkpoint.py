"""What a path holds: a Hugging Face folder or a GGUF file, its spec, and its tensors to be read when asked
for."""

import json
from pathlib import Path
from typing import Any

import msgspec

from mortice.models.gguf import GGUFSource
from mortice.models.safetensors import SafetensorsSource
from mortice.models.source import Source
from mortice.specs.errors import RequestError
from mortice.specs.model import ModelSpec
from mortice.specs.model_config import read_model


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
