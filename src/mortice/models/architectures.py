"""Which class runs which architecture."""

import torch

from mortice.models.builder import Builder, Form
from mortice.models.causal_lm import CausalLM
from mortice.models.deepseek.model import DeepSeek
from mortice.models.gemma3.model import Gemma3
from mortice.models.llama.model import Llama
from mortice.models.mixtral.model import Mixtral
from mortice.models.qwen2.model import Qwen2
from mortice.models.qwen3.model import Qwen3
from mortice.models.qwen3_moe.model import Qwen3Moe
from mortice.models.step3.model import Step3
from mortice.ops.compiled import reason_without
from mortice.specs.errors import RequestError
from mortice.specs.model import ModelSpec

MODELS: dict[str, type[CausalLM]] = {
    "llama": Llama,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "qwen3_moe": Qwen3Moe,
    "mixtral": Mixtral,
    "deepseek": DeepSeek,
    "step3": Step3,
    "gemma3": Gemma3,
}


def build(spec: ModelSpec, *, dtype: torch.dtype, quantize: str = "none", device: str = "cpu") -> CausalLM:
    """The model without its weights; CausalLM.fill brings them."""
    if quantize not in ("none", "int8", "int4", "keep"):
        raise RequestError(f"quantize must be none, int8, int4 or keep, got {quantize!r}", param="quantize")
    if quantize != "none" and device != "cpu":
        raise RequestError("quantised weights run on the CPU only", param="quantize")
    builder = Builder(
        dtype=dtype, form=form_for(dtype, quantize, device), device=device, keep=quantize == "keep"
    )
    return MODELS[spec.architecture](spec, builder)


def why_not_compiled() -> str | None:
    """Why products on this CPU go through torch alone, with the remedy; None if the compiled kernels are there."""
    return reason_without()


def form_for(dtype: torch.dtype, quantize: str, device: str) -> Form:
    """How the weights of projections are kept."""
    if quantize == "int8":
        return "int8"
    if quantize == "int4":
        return "int4"
    packable = device == "cpu" and dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "packed" if packable else "dense"
