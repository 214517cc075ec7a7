"""The engine on a GPU says what it says on a CPU, in one worker and across two."""

import random
from typing import Any

import pytest
import torch

from mortice.models.random import random_model
from mortice.specs.messages import LeaseRelease, Prefilled, Submit
from mortice.specs.model_config import read_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

BASE = {
    "vocab_size": 199,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "hidden_activation": "gelu_pytorch_tanh",
    "eos_token_id": 198,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": BASE | {"model_type": "llama"},
    "qwen3": BASE | {"model_type": "qwen3"},
    "gemma3": BASE | {"model_type": "gemma3_text", "sliding_window": 20, "sliding_window_pattern": 2},
    "mixtral": BASE | {"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2},
}


def prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(198) for _ in range(rng.randrange(1, 70))] for _ in range(8)]


@pytest.mark.parametrize("config", CONFIGS)
def test_greedy_text_is_that_of_the_cpu(make_rig: Any, make_request: Any, config: str) -> None:
    texts = {}
    for device in ("cpu", "cuda"):
        model = random_model(read_model(CONFIGS[config]), device=device)
        rig = make_rig(model=model, device=device, num_blocks=400, token_budget=48)
        for i, prompt in enumerate(prompts()):
            rig.submit(
                Submit(request=make_request(f"r{i}", prompt, max_tokens=24, ignore_eos=True, logprobs=1))
            )
        rig.run()
        texts[device] = [rig.tokens(f"r{i}") for i in range(8)]
        rig.engine.check_integrity()
    assert texts["cuda"] == texts["cpu"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_hand_over_through_the_host_changes_nothing(
    make_rig: Any, make_request: Any, temperature: float
) -> None:
    def make() -> Any:
        return random_model(read_model(CONFIGS["llama"]), device="cuda")

    options = {
        "temperature": temperature,
        "seed": 3,
        "top_p": 0.9,
        "max_tokens": 20,
        "ignore_eos": True,
        "n": 2,
    }
    alone = make_rig(model=make(), device="cuda", num_blocks=400)
    prefill = make_rig(model=make(), device="cuda", num_blocks=400, name="prefill-0.1")
    decode = make_rig(model=make(), device="cuda", num_blocks=400, name="decode-0.1")
    for i, prompt in enumerate(prompts()):
        request = make_request(f"r{i}", prompt, **options)
        alone.submit(Submit(request=request))
        prefill.submit(Submit(request=request, prefill_only=True))
        prefill.run()
        (done,) = [m for m in prefill.said if isinstance(m, Prefilled) and m.request_id == f"r{i}"]
        resumed = [d.token_ids for d in done.first]
        decode.submit(Submit(request=request, resumed=resumed, handoff=done.descriptor))
    alone.run()
    decode.run(max_turns=200_000)
    assert decode.engine.handoff.counters.num_received == 8
    prefill.engine.handoff.release(
        [i for m in decode.said if isinstance(m, LeaseRelease) for i in m.lease_ids]
    )
    prefill.engine.check_integrity()
    for i in range(8):
        for index in range(2):
            name = f"r{i}"
            assert prefill.tokens(name, index) + decode.tokens(name, index) == alone.tokens(name, index)
