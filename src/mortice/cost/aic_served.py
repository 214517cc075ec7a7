"""End-to-end rows of the `aiconfigurator-core` wheel (`silicon_sample.csv`): engines under closed loops, as measured."""

import csv
import re
from pathlib import Path

import msgspec

from mortice.cost.layout import Formats
from mortice.specs.errors import RequestError

MODELS = {  # the wheel's model path -> a catalogue name
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-v3",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-v3",
    "moonshotai/Kimi-K2.5": "kimi-k2",
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2.5",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
}
HARDWARE = {"h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "b300_sxm": "b300"}
WEIGHTS = {"": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "int4_wo": "int4"}


class ServedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One measured run."""

    id: str
    model: str  # catalogue names
    hardware: str
    engine: str
    colocated: bool
    prompt_len: int
    output_len: int
    concurrency: int  # of one instance
    tp: int
    dp: int
    ep: int
    formats: Formats
    tpot_s: float
    ttft_s: float


def read_served(systems: Path) -> tuple[list[ServedRow], dict[str, int]]:
    """The rows that can be priced, and how many were left out by reason."""
    path = systems / "silicon_sample.csv"
    try:
        with path.open(newline="") as file:
            raw = list(csv.DictReader(file))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}", param="folder") from error
    rows, left = [], dict[str, int]()
    for each in raw:
        found = _row(each)
        if isinstance(found, str):
            left[found] = left.get(found, 0) + 1
        else:
            rows.append(found)
    return rows, left


def _row(raw: dict[str, str]) -> ServedRow | str:
    """A row, or why it is left out."""
    if raw["model_path"] not in MODELS:
        return "no shape for the model"
    if not raw["silicon_tpot_ms"] or float(raw["silicon_tpot_ms"]) <= 0:
        return "no TPOT"
    colocated = raw["mode"] == "agg"
    side = "" if colocated else "decode_"
    if not raw[f"{side}batch_size"]:
        return "no batch size"
    dp = _count(raw[f"{side}attention_dp_size"])
    tp, ep = _count(raw[f"{side}tp_size"]), _count(raw[f"{side}moe_ep_size"])
    if colocated and (said := re.search(r"silicon_concurrency=(\d+)", raw["silicon_data_source"])):
        concurrency = int(said[1])
    else:
        concurrency = int(raw[f"{side}batch_size"]) * dp
    if (tp * dp) % ep:
        return "expert groups do not divide the instance"
    return ServedRow(
        id=raw["id"],
        model=MODELS[raw["model_path"]],
        hardware=HARDWARE.get(raw["system"], raw["system"]),
        engine=raw["backend"],
        colocated=colocated,
        prompt_len=int(raw["isl"]),
        output_len=int(raw["osl"]),
        concurrency=concurrency,
        tp=tp,
        dp=dp,
        ep=ep,
        formats=_formats(raw),
        tpot_s=float(raw["silicon_tpot_ms"]) / 1e3,
        ttft_s=float(raw["silicon_ttft_ms"] or 0) / 1e3,
    )


def _count(text: str) -> int:
    return max(1, int(text or 1))


def _formats(raw: dict[str, str]) -> Formats:
    """Weights as the row says; KV in FP8 where the weights are in eight bits or four on TRT-LLM, else BF16."""
    weights, experts = WEIGHTS[raw["gemm_quant_mode"]], WEIGHTS[raw["moe_quant_mode"]]
    if "gpt-oss" in raw["model_path"]:
        weights, experts = "bf16", "mxfp4"
    elif "DeepSeek" in raw["model_path"] and weights == "nvfp4":
        weights = "bf16"  # attention projections of the NVFP4 checkpoints stay in 16 bit
    elif "Kimi" in raw["model_path"]:
        weights = "bf16"  # INT4 and NVFP4 of Kimi K2.5 are its experts' alone
    kv = "fp8" if raw["backend"] == "trtllm" and weights != "bf16" else "bf16"
    return Formats(weights=weights, experts=experts, kv=kv, wire_out="bf16", wire_back="bf16")
