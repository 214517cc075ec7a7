"""Configs into specs: what is derived, and which field is blamed when one is wrong."""

import pytest

from mortice.specs.errors import RequestError
from mortice.specs.gguf import gguf_config
from mortice.specs.model_config import read_model

LLAMA = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
DEEPSEEK = LLAMA | {
    "model_type": "deepseek_v3",
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}


def test_llama_derives_what_its_config_leaves_out():
    spec = read_model(LLAMA | {"eos_token_id": [2, 7]})
    assert spec.attention.head_dim == 8
    assert spec.attention.kv_planes == ((2, 8), (2, 8))
    assert spec.attention.scale == 8**-0.5
    assert spec.eos_token_ids == (2, 7)
    assert (spec.max_context, spec.rope.theta) == (512, 10_000.0)


def test_both_spellings_of_rotary_settings_mean_the_same():
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}
    old = read_model(LLAMA | {"rope_theta": 5e5, "rope_scaling": scaling})
    new = read_model(LLAMA | {"rope_parameters": scaling | {"rope_theta": 5e5}})
    assert old == new
    assert (old.rope.kind, old.rope.factor, old.rope.original_context) == ("llama3", 8.0, 128)


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_stretched_models_serve_the_longer_context(kind):
    spec = read_model(LLAMA | {"rope_scaling": {"type": kind, "factor": 4.0}})
    assert spec.max_context == 2048


def test_latent_attention_caches_one_plane():
    spec = read_model(DEEPSEEK)
    assert spec.attention.kv_planes == ((1, 40),)
    assert spec.attention.query_rank == 0
    assert spec.moe is not None
    assert (spec.moe.layers, spec.moe.router) == ((1, 2, 3), "noaux_tc")


def test_gemma_alternates_windows_and_thetas():
    config = LLAMA | {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 64,
        "sliding_window_pattern": 2,
    }
    spec = read_model(config | {"rope_theta": 1e6, "rope_local_base_freq": 1e4})
    assert spec.windows == (64, 0, 64, 0)
    assert [spec.layer_rope(i).theta for i in range(2)] == [1e4, 1e6]
    assert spec.embedding_scale == 8.0
    assert spec.tie_embeddings


def test_a_vision_wrapper_gives_its_text_model():
    text = {k: v for k, v in LLAMA.items() if k != "model_type"} | {
        "model_type": "gemma3_text",
        "head_dim": 16,
    }
    wrapped = read_model({"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]})
    assert wrapped.hidden_size == 64
    assert wrapped.eos_token_ids == (1, 106)


def test_qwen_windows_need_their_switch():
    config = LLAMA | {"model_type": "qwen2", "sliding_window": 64, "max_window_layers": 3}
    assert read_model(config).windows == ()
    assert read_model(config | {"use_sliding_window": True}).windows == (0, 0, 0, 64)


BROKEN = [
    ({"model_type": "mamba"}, "model_type"),
    ({"hidden_size": None}, "hidden_size"),
    ({"hidden_size": "64"}, "hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"hidden_act": "relu"}, "hidden_act"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "rope_scaling.rope_type"),
    ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "rope_scaling.factor"),
    ({"rope_scaling": "twice"}, "rope_scaling"),
    ({"eos_token_id": "</s>"}, "eos_token_id"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ({"head_dim": 7}, "head_dim"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ({"model_type": "mistral", "sliding_window": 8, "layer_types": ["full_attention"]}, "layer_types"),
    ({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 4}, "num_experts_per_tok"),
]


@pytest.mark.parametrize(("change", "field"), BROKEN)
def test_the_broken_field_is_named(change, field):
    with pytest.raises(RequestError) as caught:
        read_model(LLAMA | change)
    assert caught.value.param == field
    assert field in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kv_lora_rank": None}, "kv_lora_rank"),
        ({"n_group": 3}, "n_group"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok"),
        ({"model_type": "deepseek_v2", "topk_method": "random"}, "topk_method"),
        ({"model_type": "deepseek_v2", "norm_topk_prob": True}, "norm_topk_prob"),
        ({"attention_bias": True}, "attention_bias"),
    ],
)
def test_deepseek_fields_are_checked(change, field):
    with pytest.raises(RequestError) as caught:
        read_model(DEEPSEEK | change)
    assert caught.value.param == field


def test_gguf_metadata_reads_as_a_config():
    metadata = {
        "general.architecture": "llama",
        "llama.context_length": 512,
        "llama.block_count": 4,
        "llama.feed_forward_length": 96,
        "llama.embedding_length": 64,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 5,
    }
    spec = read_model(gguf_config(metadata, {"token_embd.weight": (1000, 64)}))
    assert (spec.vocab_size, spec.eos_token_ids, spec.tie_embeddings) == (1000, (2, 5), True)
    assert spec.attention == read_model(LLAMA).attention
    with pytest.raises(RequestError, match="'rwkv'"):
        gguf_config({"general.architecture": "rwkv"}, {})
