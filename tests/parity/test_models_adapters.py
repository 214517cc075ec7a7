"""LoRA beside the weights against LoRA merged into them, several adapters in one batch."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mortice.models.driver import Driver, Text
from mortice.models.random import random_model, random_weights
from mortice.models.source import TensorsSource
from mortice.specs.errors import NotFound, RequestError
from mortice.specs.model_config import read_model

LLAMA = {
    "model_type": "llama",
    "vocab_size": 150,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
DEEPSEEK = LLAMA | {
    "model_type": "deepseek_v3",
    "q_lora_rank": None,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
}
DEEPSEEK |= {"qk_rope_head_dim": 8, "v_head_dim": 10}
CASES = {
    "llama": (
        LLAMA,
        ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"],
    ),
    "deepseek": (DEEPSEEK, ["self_attn.q_proj", "self_attn.kv_a_proj_with_mqa", "mlp.gate_proj"]),
}
PROMPTS = [[5, 9, 100, 3], list(range(40)), [7], [60, 61, 62] * 5]


def adapter(folder, weights, modules, seed, rank, **config):
    """Write an adapter and return the weights with it merged in."""
    torch.manual_seed(seed)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "bias": "none"} | config
    scale = settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)
    tensors, merged = {}, dict(weights)
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if any(module.endswith(m) for m in modules):
            down, up = torch.randn(rank, weight.shape[1]) * 0.2, torch.randn(weight.shape[0], rank) * 0.2
            tensors[f"base_model.model.{module}.lora_A.weight"] = down
            tensors[f"base_model.model.{module}.lora_B.weight"] = up
            merged[name] = weight + scale * up @ down
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return merged


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_rows_with_different_adapters_equal_merged_models(case, deterministic, tmp_path):
    config, modules = CASES[case]
    spec = read_model(config)
    model = random_model(spec, seed=1)
    weights = random_weights(model, 1)
    merged = {
        None: weights,
        "a": adapter(tmp_path / "a", weights, modules, 2, 4),
        "b": adapter(tmp_path / "b", weights, modules[:1], 3, 2, use_rslora=True),
    }
    model.load_adapter("a", tmp_path / "a")
    model.load_adapter("b", tmp_path / "b")
    names = ["a", None, "b", "a"]
    texts = [Text(adapter=name) for name in names]
    found = Driver(model, 40).step(list(zip(texts, PROMPTS, strict=True)), deterministic=deterministic)
    for row, name, prompt in zip(found, names, PROMPTS, strict=True):
        plain = random_model(spec)
        plain.fill(TensorsSource(merged[name]))
        torch.testing.assert_close(row, Driver(plain, 8).step([(Text(), prompt)])[0], atol=1e-4, rtol=1e-4)


def test_unloaded_adapters_are_gone(tmp_path):
    model = random_model(read_model(LLAMA))
    adapter(tmp_path / "a", random_weights(model, 0), ["q_proj"], 2, 4)
    model.load_adapter("a", tmp_path / "a")
    model.unload_adapter("a")
    assert not any(linear.adapters for linear, _ in model.builder.linears)
    with pytest.raises(NotFound, match="'a'"):
        Driver(model, 8).step([(Text(adapter="a"), [1, 2])])
    with pytest.raises(NotFound, match="'a'"):
        model.unload_adapter("a")


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias"), ({"peft_type": "IA3"}, "peft_type")],
)
def test_what_an_adapter_asks_and_we_lack_is_refused_by_name(change, expected, tmp_path):
    model = random_model(read_model(LLAMA))
    adapter(tmp_path / "a", random_weights(model, 0), ["q_proj"], 2, 4, **change)
    with pytest.raises(RequestError, match=expected):
        model.load_adapter("a", tmp_path / "a")


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_modules_that_cannot_be_adapted_are_refused(module, tmp_path):
    model = random_model(read_model(LLAMA))
    adapter(tmp_path / "a", random_weights(model, 0), [module], 2, 4)
    with pytest.raises(RequestError, match=module):
        model.load_adapter("a", tmp_path / "a")
