"""Step-3's text model against a plain reference: whole sequences, no cache, written from the paper's
formulas."""

import json
import random

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from mortice.models.driver import Driver, Text
from mortice.models.load import load_model

CONFIG = {
    "model_type": "step3_text",
    "vocab_size": 181,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_attention_groups": 1,
    "head_dim": 16,
    "share_q_dim": 20,
    "moe_num_experts": 5,
    "moe_top_k": 2,
    "moe_intermediate_size": 24,
    "share_expert_dim": 32,
    "moe_layers_enum": "1,2",
    "norm_expert_weight": False,
    "rope_theta": 500_000,
    "rms_norm_eps": 1e-5,
    "max_position_embedding": 256,
}
HEADS, DIM, HIDDEN = 6, 16, 48


def checkpoint() -> dict[str, torch.Tensor]:
    torch.manual_seed(11)
    w = {
        "model.embed_tokens.weight": torch.randn(181, HIDDEN),
        "lm_head.weight": torch.randn(181, HIDDEN) * 0.3,
    }
    w["model.norm.weight"] = 1 + torch.randn(HIDDEN) * 0.1
    for i in range(3):
        at = f"model.layers.{i}"
        w[f"{at}.input_layernorm.weight"] = 1 + torch.randn(HIDDEN) * 0.1
        w[f"{at}.post_attention_layernorm.weight"] = 1 + torch.randn(HIDDEN) * 0.1
        w[f"{at}.self_attn.q_proj.weight"] = torch.randn(20, HIDDEN) * 0.3
        w[f"{at}.self_attn.k_proj.weight"] = torch.randn(DIM, HIDDEN) * 0.3
        w[f"{at}.self_attn.v_proj.weight"] = torch.randn(DIM, HIDDEN) * 0.3
        w[f"{at}.self_attn.inter_norm.weight"] = 1 + torch.randn(20) * 0.1
        w[f"{at}.self_attn.wq.weight"] = torch.randn(HEADS * DIM, 20) * 0.3
        w[f"{at}.self_attn.o_proj.weight"] = torch.randn(HIDDEN, HEADS * DIM) * 0.2
        if i == 0:
            mlp(w, f"{at}.mlp", 72)
        else:
            w[f"{at}.moe.gate.weight"] = torch.randn(5, HIDDEN) * 0.3
            mlp(w, f"{at}.moe", 24, (5,))
            mlp(w, f"{at}.share_expert", 32)
    return w


def mlp(w: dict[str, torch.Tensor], at: str, size: int, stack: tuple[int, ...] = ()) -> None:
    w[f"{at}.gate_proj.weight"] = torch.randn(*stack, size, HIDDEN) * 0.2
    w[f"{at}.up_proj.weight"] = torch.randn(*stack, size, HIDDEN) * 0.2
    w[f"{at}.down_proj.weight"] = torch.randn(*stack, HIDDEN, size) * 0.2


def reference(w: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[name]

    def gated(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def turn(x: torch.Tensor) -> torch.Tensor:  # pairs (i, i + DIM / 2), as complex numbers
        angle = torch.arange(len(tokens))[:, None] * 500_000 ** (-torch.arange(DIM // 2) / (DIM / 2))
        pair = (
            torch.complex(x[..., : DIM // 2], x[..., DIM // 2 :])
            * torch.polar(torch.ones(()), angle)[:, None]
        )
        return torch.cat((pair.real, pair.imag), dim=-1)

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(3):
        at = f"model.layers.{i}"
        h = norm(x, f"{at}.input_layernorm.weight")
        c = norm(h @ w[f"{at}.self_attn.q_proj.weight"].T, f"{at}.self_attn.inter_norm.weight")
        q = turn((c @ w[f"{at}.self_attn.wq.weight"].T).view(-1, HEADS, DIM))
        k = turn((h @ w[f"{at}.self_attn.k_proj.weight"].T)[:, None])[:, 0]
        v = h @ w[f"{at}.self_attn.v_proj.weight"].T
        scores = torch.einsum("thd,sd->hts", q, k) / DIM**0.5
        scores += torch.full((len(tokens), len(tokens)), float("-inf")).triu(1)
        mixed = torch.einsum("hts,sd->thd", scores.softmax(-1), v).flatten(1)
        x = x + mixed @ w[f"{at}.self_attn.o_proj.weight"].T
        h = norm(x, f"{at}.post_attention_layernorm.weight")
        if i == 0:
            x = x + gated(h, *(w[f"{at}.mlp.{p}_proj.weight"] for p in ("gate", "up", "down")))
            continue
        chances = (h @ w[f"{at}.moe.gate.weight"].T).softmax(-1)
        kept = torch.where(chances >= chances.topk(2).values[:, -1:], chances, 0)
        gate, up, down = (w[f"{at}.moe.{p}_proj.weight"] for p in ("gate", "up", "down"))
        routed = sum(kept[:, e, None] * gated(h, gate[e], up[e], down[e]) for e in range(5))
        x = x + routed + gated(h, *(w[f"{at}.share_expert.{p}_proj.weight"] for p in ("gate", "up", "down")))
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder, weights = tmp_path_factory.mktemp("step3"), checkpoint()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return weights, load_model(folder, dtype=torch.float32)


def prompts() -> list[list[int]]:
    chooser = random.Random(2)
    return [[chooser.randrange(181) for _ in range(n)] for n in (33, 1, 60)]


def test_one_kv_head_is_all_that_is_cached(pair):
    assert pair[1].kv_planes == ((1, DIM), (1, DIM))


def test_logits_agree(pair):
    weights, model = pair
    found = Driver(model, 32, block_size=8).step([(Text(), p) for p in prompts()], all_logits=True)
    expected = torch.cat([reference(weights, p) for p in prompts()])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_greedy_text_agrees_in_mixed_batches(pair):
    weights, model = pair
    found, _ = Driver(model, 64, block_size=8).greedy(prompts(), 64, chunk=9, stagger=2)
    for prompt, answer in zip(prompts(), found, strict=True):
        expected = reference(weights, prompt + answer)[len(prompt) - 1 : -1].argmax(dim=-1)
        assert answer == expected.tolist()
