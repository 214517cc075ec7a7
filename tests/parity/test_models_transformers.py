"""Every architecture against transformers in float32: the same logits, the same greedy text, through a paged
cache."""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mortice.models.driver import Driver, Text
from mortice.models.load import load_model

TINY = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10_000.0}
GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 24}
DEEPSEEK = {
    "num_key_value_heads": 6,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "head_dim": 8,  # theirs takes it for the rotary width
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
} | EXPERTS
MSCALE = {"mscale": 0.707, "mscale_all_dim": 1.0}
CONFIGS = {
    "llama": ("llama", {}),
    "llama-tied-biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
    ),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "mistral-window": ("mistral", {"sliding_window": 24}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    "qwen3": ("qwen3", {}),
    "qwen3-moe": ("qwen3_moe", EXPERTS | {"num_experts": 8, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek-v2-greedy": ("deepseek_v2", DEEPSEEK | {"q_lora_rank": None, "topk_method": "greedy"}),
    "deepseek-v2-groups": ("deepseek_v2", DEEPSEEK | {"topk_method": "group_limited_greedy"}),
    "deepseek-v3": ("deepseek_v3", DEEPSEEK | {"norm_topk_prob": True}),
    "deepseek-v3-yarn": ("deepseek_v3", DEEPSEEK | {"rope_parameters": YARN | MSCALE, "q_lora_rank": None}),
    "gemma3": (
        "gemma3_text",
        {"sliding_window": 20, "query_pre_attn_scalar": 24, "layer_types": GEMMA_LAYERS},
    ),
}


def transformers_model(kind: str, changes: dict, seed: int = 0) -> torch.nn.Module:
    config = AutoConfig.for_model(kind, **{**TINY, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # initial weights are so small that every token would be as likely as the next
        for name, weight in model.named_parameters():
            weight.copy_(
                torch.randn_like(weight) * (0.3 if weight.dim() > 1 else 0.1)
                + ("norm" in name and kind != "gemma3_text")
            )
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.rand_like(buffer))
    return model


def prompts(seed: int = 3) -> list[list[int]]:
    chooser = random.Random(seed)
    return [[chooser.randrange(3, TINY["vocab_size"]) for _ in range(n)] for n in (45, 7, 1, 70)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """Their model, and ours read from the folder they saved."""
    theirs = transformers_model(*CONFIGS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, load_model(folder, dtype=torch.float32)


def test_logits_of_whole_prompts_agree(pair):
    theirs, ours = pair
    driver = Driver(ours, 32, block_size=8)
    found = driver.step([(Text(), prompt) for prompt in prompts()], all_logits=True)
    with torch.no_grad():
        expected = torch.cat([theirs(torch.tensor([prompt])).logits[0] for prompt in prompts()])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [512, 11])
def test_greedy_text_agrees_in_mixed_batches(pair, chunk):
    theirs, ours = pair
    found, _ = Driver(ours, 128, block_size=8).greedy(prompts(), 64, chunk=chunk, stagger=3)
    for prompt, answer in zip(prompts(), found, strict=True):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=64,
                do_sample=False, eos_token_id=None,
            )  # fmt: skip
        assert answer == out[0, len(prompt) :].tolist()


def test_dynamic_rope_agrees_past_the_trained_context(tmp_path):
    """Theirs keeps the rotation that a key got when it was new, and so do we; the prompt itself fits."""
    scaling = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10_000.0}
    theirs = transformers_model("llama", {"rope_parameters": scaling, "max_position_embeddings": 32})
    theirs.save_pretrained(tmp_path)
    prompt = prompts()[0][:20]
    found, _ = Driver(load_model(tmp_path, dtype=torch.float32), 32).greedy([prompt], 40)
    with torch.no_grad():
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert found[0] == out[0, 20:].tolist()


def test_a_chunk_that_wants_no_logits_gets_none_and_still_fills_the_cache(pair):
    _, ours = pair
    driver, text = Driver(ours, 8), Text()
    step = driver.step_input([(text, [5, 6, 7])])
    step.logit_rows = step.logit_rows[:0]
    assert ours.forward(step, driver.kv).shape == (0, TINY["vocab_size"])
    whole = Driver(ours, 8).step([(Text(), [5, 6, 7, 8])])
    torch.testing.assert_close(driver.step([(text, [8])]), whole, atol=1e-4, rtol=0)
