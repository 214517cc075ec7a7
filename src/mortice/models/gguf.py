"""A GGUF file as a source of Hugging Face tensors: names mapped back, values dequantised, conversions
undone."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import Q4_K, dequantize
from torch import Tensor

from mortice.models.gguf_file import GGUFFile
from mortice.models.source import GroupCodes
from mortice.specs.errors import RequestError
from mortice.specs.gguf import gguf_config

SLICE = 1 << 18  # values dequantised at a time
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
TOP |= {"output.weight": "lm_head.weight", "rope_freqs.weight": "rope_freqs.weight"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA3 = {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm"}
GEMMA3 |= {"post_ffw_norm": "post_feedforward_layernorm"}
ROUTERS = {"qwen3_moe": "mlp.gate", "mixtral": "block_sparse_moe.gate"}
EXPERTS = {
    "qwen3_moe": {
        "gate": "mlp.experts.{}.gate_proj",
        "up": "mlp.experts.{}.up_proj",
        "down": "mlp.experts.{}.down_proj",
    },
    "mixtral": {
        "gate": "block_sparse_moe.experts.{}.w1",
        "up": "block_sparse_moe.experts.{}.w3",
        "down": "block_sparse_moe.experts.{}.w2",
    },
}


Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # codes, scales, lows: w = code * scale + low


def q4_0(blocks: np.ndarray) -> Parts:
    """[B, 18] bytes: a scale, 32 codes about 8."""
    scale = halves(blocks[:, :2])
    return nibbles(blocks[:, 2:]), scale, -8 * scale


def q4_1(blocks: np.ndarray) -> Parts:
    """[B, 20] bytes: a scale, a low, 32 codes."""
    return nibbles(blocks[:, 4:]), halves(blocks[:, :2]), halves(blocks[:, 2:4])


def q4_k(blocks: np.ndarray) -> Parts:
    """[B, 144] bytes: eight groups, whose scales and lows are multiples in 6 bits of the block's two."""
    scale, low = Q4_K.get_scale_min(blocks[:, 4:16])
    packed = blocks[:, 16:].reshape(-1, 4, 32)
    codes = np.stack((packed & 15, packed >> 4), axis=2)
    return codes, halves(blocks[:, :2]) * scale, -halves(blocks[:, 2:4]) * low


FOUR_BITS: dict[GGMLQuantizationType, Callable[[np.ndarray], Parts]] = {
    GGMLQuantizationType.Q4_0: q4_0,
    GGMLQuantizationType.Q4_1: q4_1,
    GGMLQuantizationType.Q4_K: q4_k,
}


def halves(pairs: np.ndarray) -> np.ndarray:
    """[B, 2] bytes to [B, 1] float32."""
    return np.ascontiguousarray(pairs).view(np.float16).astype(np.float32)


def nibbles(packed: np.ndarray) -> np.ndarray:
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


class GGUFSource:
    """`config` is what the checkpoint's config.json would say."""

    def __init__(self, path: Path) -> None:
        self.file = GGUFFile(path)
        self.label = str(path)
        self.config = gguf_config(
            self.file.metadata, {name: t.shape for name, t in self.file.tensors.items()}
        )
        self.kind: str = self.config["model_type"]
        self.where: dict[str, tuple[str, int]] = {}  # Hugging Face name to (GGUF name, expert or -1)
        for name in self.file.tensors:
            self.where |= self.hf_names(name)

    def hf_names(self, name: str) -> dict[str, tuple[str, int]]:
        """The checkpoint tensors that one GGUF tensor holds: one, or one for each expert."""
        if name in TOP:
            return {TOP[name]: (name, -1)}
        parts = name.split(".")
        if (
            len(parts) != 4 - (parts[-1] not in ("weight", "bias"))
            or parts[0] != "blk"
            or not parts[1].isdigit()
        ):
            return {name: (name, -1)}
        at, middle, ending = f"model.layers.{parts[1]}.", parts[2], parts[3]
        if middle == "ffn_gate_inp" and self.kind in ROUTERS:
            return {f"{at}{ROUTERS[self.kind]}.{ending}": (name, -1)}
        pattern = EXPERTS.get(self.kind, {}).get(middle.removeprefix("ffn_").removesuffix("_exps"))
        if pattern and middle.endswith("_exps"):
            count = self.file.tensors[name].shape[0]
            return {f"{at}{pattern.format(e)}.{ending}": (name, e) for e in range(count)}
        names = LAYER | GEMMA3 if self.kind == "gemma3_text" else LAYER
        return {f"{at}{names[middle]}.{ending}" if middle in names else name: (name, -1)}

    def names(self) -> Iterable[str]:
        return (name for name in self.where if name != "rope_freqs.weight")

    def shape(self, name: str) -> tuple[int, ...]:
        held, expert = self.where[name]
        shape = self.file.tensors[held].shape
        return shape[1:] if expert >= 0 else shape

    def raw(self, name: str) -> tuple[np.ndarray, GGMLQuantizationType]:
        """Bytes of the tensor by rows, in the row order of a Hugging Face checkpoint."""
        held, expert = self.where[name]
        rows = self.file.rows(held)
        if expert >= 0:
            per_expert = len(rows) // self.file.tensors[held].shape[0]
            rows = rows[expert * per_expert : (expert + 1) * per_expert]
        if self.config["model_type"] in ("llama", "mixtral") and ".self_attn." in name:
            heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(
                name.split(".")[-2]
            )
            if heads:
                rows = unpermute(rows, self.config.get(heads, self.config["num_attention_heads"]))
        return rows, self.file.tensors[held].kind

    def check(self, name: str) -> None:
        kind = self.file.tensors[self.where[name][0]].kind
        try:
            dequantize(np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), kind)
        except NotImplementedError as error:
            raise RequestError(
                f"{self.label}: tensor {name} has type {kind.name}, not supported", param=name
            ) from error

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        rows, kind = self.raw(name)
        shape = self.shape(name)
        found = torch.empty(len(rows), shape[-1], dtype=dtype)
        lowered = self.kind == "gemma3_text" and name.endswith("norm.weight")
        # Dequantising makes several float32 copies: a slice at a time keeps them small beside the model.
        step = max(1, SLICE // shape[-1])
        for first in range(0, len(rows), step):
            values = torch.from_numpy(
                np.array(dequantize(rows[first : first + step], kind), dtype=np.float32)
            )
            # Gemma's converter stores the factor, the checkpoint its distance from 1.
            found[first : first + step].copy_(values - 1.0 if lowered else values)
        return found.view(shape)

    def codes(self, name: str) -> GroupCodes | None:
        rows, kind = self.raw(name)
        if kind not in FOUR_BITS:
            return None
        blocks = np.ascontiguousarray(rows).reshape(-1, GGML_QUANT_SIZES[kind][1])
        codes, scale, low = FOUR_BITS[kind](blocks)
        shape = (len(rows), -1)
        parts = codes.reshape(shape), scale.reshape(shape), (low + 8 * scale).reshape(shape)
        return GroupCodes(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))

    def bits(self, name: str) -> float:
        values, size = GGML_QUANT_SIZES[self.file.tensors[self.where[name][0]].kind]
        return float(8 * size / values)

    def rope_divisors(self) -> tuple[float, ...]:
        """How llama.cpp carries Llama-3's stretched frequencies: a divisor for each pair; empty without."""
        return tuple(self.tensor("rope_freqs.weight").tolist()) if "rope_freqs.weight" in self.where else ()


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp pairs neighbouring rotary features in q and k of this family; put the halves back apart."""
    dim = len(rows) // heads
    order = np.arange(len(rows)).reshape(heads, dim // 2, 2).swapaxes(1, 2).reshape(-1)
    return rows[order]
