"""Reads LoRA adapters in PEFT's folder format: adapter_config.json and adapter_model.safetensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mortice.models.builder import Part, arrange
from mortice.models.checkpoint import read_json
from mortice.models.safetensors import SafetensorsSource
from mortice.ops.linear import Linear, LowRank
from mortice.specs.errors import RequestError

PREFIX = "base_model.model."
REFUSED = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
}
REFUSED |= {"layer_replication": None, "lora_bias": False}


def read_adapter(
    folder: Path, parts: Mapping[str, Part], dtype: torch.dtype, device: str
) -> list[tuple[Linear, LowRank]]:
    """The matrices to hang beside each Linear. Raises RequestError for what is broken or would have no
    effect."""
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder", param="adapter")
    config = read_json(folder / "adapter_config.json")
    check_config(folder, config)
    source = SafetensorsSource(folder, "adapter_model.safetensors")
    downs = [name for name in source.names() if name.endswith(".lora_A.weight")]
    if not downs:
        raise RequestError(f"{folder}: the adapter holds no lora_A.weight", param="adapter")
    read: set[str] = set()
    made = []
    for down in downs:
        stem = down.removesuffix(".lora_A.weight")
        up = f"{stem}.lora_B.weight"
        part = parts.get(stem.removeprefix(PREFIX))
        if part is None or not stem.startswith(PREFIX):
            raise RequestError(
                f"{folder}: tensor {down} belongs to a module that cannot be adapted", param=down
            )
        if up not in source.names():
            raise RequestError(f"{folder}: tensor {up} is missing", param=up)
        rank = source.shape(down)[0]
        check_shape(source, down, (rank, part.columns))
        check_shape(source, up, (part.piece.size, rank))
        scale = adapter_scale(folder, config, stem.removeprefix(PREFIX), rank)
        raised = arrange(source.tensor(up), part.piece.order) * scale
        lowered = source.tensor(down).to(device, dtype, copy=True)
        made.append((part.linear, LowRank(lowered, raised.to(device, dtype), part.first)))
        read |= {down, up}
    for name in sorted(set(source.names()) - read):
        raise RequestError(f"{folder}: tensor {name} is not part of a LoRA pair", param=name)
    return made


def check_config(folder: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise RequestError(
            f"{folder}: peft_type is {config.get('peft_type')!r}, only LORA is read", param="adapter"
        )
    for field, neutral in REFUSED.items():
        if config.get(field) not in (neutral, None, []):
            raise RequestError(f"{folder}: {field} is not supported", param=field)
    if config.get("bias", "none") != "none":
        raise RequestError(f"{folder}: bias {config['bias']!r} is not supported", param="bias")


def check_shape(source: SafetensorsSource, name: str, shape: tuple[int, ...]) -> None:
    source.check(name)
    if source.shape(name) != shape:
        found = list(source.shape(name))
        raise RequestError(f"{source.label}: tensor {name} is {found}, expected {list(shape)}", param=name)


def adapter_scale(folder: Path, config: dict[str, Any], module: str, rank: int) -> float:
    """lora_alpha / rank, or / sqrt(rank) with rank-stabilised LoRA (arXiv 2312.03732); alpha_pattern goes
    first."""
    alpha = config.get("lora_alpha", 8)
    for pattern, other in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = other
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise RequestError(f"{folder}: lora_alpha must be a number, got {alpha!r}", param="lora_alpha")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
