"""Configs that transformers writes, read from a folder: our parameter counts against the models that it builds of them."""

import json

import pytest

from mortice.cost import parameters
from mortice.specs.catalogue import load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LAYERS = 4  # enough for every kind of layer of a stack
FAMILIES = {
    "llama": {},
    "mistral": {},
    "gemma": {},
    "ernie4_5": {},
    "qwen2": {},
    "qwen3": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "mixtral": {},
    "deepseek_v2": {"num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "ernie4_5_moe": {},
    "minimax_m2": {},
    "glm4_moe": {"first_k_dense_replace": 1},
    "gemma2": {},
    "gemma3_text": {},
    "gpt_oss": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_model_that_transformers_builds(family, tmp_path):
    """Half a per cent: norms, biases and attention sinks are not counted by the planner."""
    kind = transformers.CONFIG_MAPPING[family]
    config = kind(num_hidden_layers=LAYERS, **FAMILIES[family])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    built = sum(each.numel() for each in model.parameters())
    config.save_pretrained(tmp_path)
    shape = load_model(str(tmp_path))
    assert shape.num_layers == LAYERS
    assert parameters(shape) == pytest.approx(built, rel=5e-3)


def test_a_field_that_decides_the_size_is_not_passed_over(tmp_path):
    """The same folder with another width counts otherwise."""
    config = transformers.CONFIG_MAPPING["qwen3"](num_hidden_layers=LAYERS)
    config.save_pretrained(tmp_path)
    before = parameters(load_model(str(tmp_path)))
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(values | {"intermediate_size": 2 * values["intermediate_size"]})
    )
    assert parameters(load_model(str(tmp_path))) > 1.2 * before
