"""A deterministic step: a token's logits are the same bits in any batch and with any cut of its prompt."""

import random

import pytest
import torch

from mortice.models.driver import Driver
from mortice.models.random import random_model
from mortice.specs.model_config import read_model

BASE = {
    "vocab_size": 199,
    "hidden_size": 96,
    "intermediate_size": 136,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
LATENT = {
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
EXPERTS = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
}
EXPERTS |= {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 1}
CONFIGS = {
    "llama": BASE | {"model_type": "llama"},
    "gemma3": BASE | {"model_type": "gemma3_text", "sliding_window": 20, "sliding_window_pattern": 2},
    "mixtral": BASE | {"model_type": "mixtral", "num_local_experts": 5},
    "deepseek": BASE | {"model_type": "deepseek_v3"} | LATENT | EXPERTS,
}
CASES = [
    ("llama", torch.float32, "none", 1),
    ("llama", torch.bfloat16, "none", 2),
    ("llama", torch.bfloat16, "int8", 2),
    ("llama", torch.float32, "none", 3),
    ("gemma3", torch.float32, "none", 2),
    ("mixtral", torch.bfloat16, "none", 2),
    ("deepseek", torch.float32, "none", 2),
]


def prompts() -> list[list[int]]:
    chooser = random.Random(5)
    lengths = [90] + [chooser.randrange(1, 60) for _ in range(43)]
    return [[chooser.randrange(199) for _ in range(n)] for n in lengths]


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("config", "dtype", "quantize", "threads"), CASES)
def test_batch_and_chunks_change_no_bit(config, dtype, quantize, threads, set_threads):
    set_threads(threads)
    model = random_model(read_model(CONFIGS[config]), dtype=dtype, quantize=quantize)

    def run(count: int, chunk: int, seed: int) -> list[torch.Tensor]:
        driver = Driver(model, 400, seed=seed)
        order = prompts()[:count][::-1] if seed else prompts()[:count]
        _, logits = driver.greedy(order, 3, chunk=chunk, deterministic=True)
        return logits[::-1] if seed else logits

    full = run(44, 512, 0)
    for other in (run(44, 61, 1), run(8, 23, 0), run(1, 512, 1)):
        for expected, found in zip(full, other, strict=False):
            assert torch.equal(expected, found)


@pytest.mark.parametrize("config", CONFIGS)
def test_deterministic_and_ordinary_steps_agree_closely(config, set_threads):
    set_threads(1)
    model = random_model(read_model(CONFIGS[config]))
    plain = Driver(model, 100).greedy(prompts()[:6], 8, chunk=40)[1]
    fixed = Driver(model, 100).greedy(prompts()[:6], 8, chunk=40, deterministic=True)[1]
    for expected, found in zip(plain, fixed, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_ordinary_batches_do_differ(set_threads):
    """The property above is not trivial: without the mode some bit differs between batch sizes."""
    set_threads(2)
    model = random_model(read_model(CONFIGS["llama"]), dtype=torch.float32)
    many = Driver(model, 400).greedy(prompts(), 4)[1][0]
    alone = Driver(model, 400).greedy(prompts()[:1], 4, chunk=16)[1][0]
    assert not torch.equal(many, alone)
