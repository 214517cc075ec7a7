"""GGUF: the real SmolLM2 against transformers' own reader, and every quantised type against the gguf
package."""

import os
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mortice.models.architectures import build
from mortice.models.driver import Driver, Text
from mortice.models.gguf import GGUFSource
from mortice.models.gguf_file import GGUFTensor
from mortice.models.load import load_model
from mortice.ops.compiled import reason_without
from mortice.specs.errors import RequestError
from mortice.specs.model_config import read_model

DEFAULT = Path.home() / ".cache/mortice/models/smollm2"
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
PROMPTS = [[1, 4093, 198, 19556, 28, 905, 314, 2], list(range(1000, 1050)), [504]]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    found = Path(os.environ.get("MORTICE_SMOLLM2", ""))
    if not found.is_file():
        found = next(iter(sorted(DEFAULT.glob("*.gguf"))), found)
    if not found.is_file():
        pytest.skip(
            "SmolLM2 is not here: run `mortice pull smollm2`, or point MORTICE_SMOLLM2 at its .gguf file"
        )
    return found


@pytest.fixture(scope="module")
def theirs(smollm2):
    return AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()


def test_smollm2_equals_transformers(smollm2, theirs):
    ours = load_model(smollm2, dtype=torch.float32)
    found = Driver(ours, 32).step([(Text(), prompt) for prompt in PROMPTS], all_logits=True)
    with torch.inference_mode():
        expected = torch.cat([theirs(torch.tensor([prompt])).logits[0] for prompt in PROMPTS])
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=1e-4)
    answers, _ = Driver(ours, 32).greedy(PROMPTS[:2], 24, chunk=16)
    with torch.inference_mode():
        for prompt, answer in zip(PROMPTS, answers, strict=False):
            logits = theirs(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            assert answer == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("quantize", ["none", "keep"])
def test_smollm2_in_bfloat16_stays_close(smollm2, theirs, quantize):
    """Within a tenth of a nat for the tokens that matter: what bfloat16 costs, kept 4-bit weights do not add
    to."""
    ours = load_model(smollm2, dtype=torch.bfloat16, quantize=quantize)
    found = Driver(ours, 32).step([(Text(), PROMPTS[0])], all_logits=True).log_softmax(-1)
    with torch.inference_mode():
        expected = theirs(torch.tensor([PROMPTS[0]])).logits[0].log_softmax(-1)
    best = expected.topk(5).indices
    assert (found.gather(1, best) - expected.gather(1, best)).abs().mean() < 0.1


def test_kept_weights_are_exact_in_float32(smollm2):
    """The 4-bit kernels read what the file says: no difference from dequantised weights but the order of
    sums."""
    kept, plain = (load_model(smollm2, dtype=torch.float32, quantize=q) for q in ("keep", "none"))
    for tokens in (PROMPTS[0], list(range(2000, 2030))):
        found, expected = (Driver(m, 8).step([(Text(), tokens)]) for m in (kept, plain))
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4)
    assert kept.weight_bytes < plain.weight_bytes / 2.5


def write_gguf(
    path: Path, kind: str, *, architecture: str = "llama", drop: str = ""
) -> dict[str, np.ndarray]:
    """A one-layer model whose matrices have the given type. Answers the values that the file stands for."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_block_count(1)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(300)])
    rng = np.random.default_rng(0)
    quantised = gguf.GGMLQuantizationType[kind]
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[quantised]
    shapes = {"token_embd": (300, 256), "blk.0.attn_q": (256, 256), "blk.0.attn_k": (128, 256)}
    shapes |= {"blk.0.attn_v": (128, 256), "blk.0.attn_output": (256, 256), "blk.0.ffn_gate": (256, 256)}
    shapes |= {"blk.0.ffn_up": (256, 256), "blk.0.ffn_down": (256, 256)}
    values = {}
    for name, (rows, columns) in shapes.items():
        if drop == name:
            continue
        if kind in ("F32", "F16"):
            raw = rng.standard_normal((rows, columns)).astype(np.float32 if kind == "F32" else np.float16)
        else:  # any bytes are a valid block but for scales that are no number: keep exponents small
            raw = rng.integers(0, 60, (rows, columns // per_block * block_bytes)).astype(np.uint8)
        values[name] = gguf.quants.dequantize(raw, quantised)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=quantised)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(256, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_read_as_the_gguf_package_reads_it(kind, tmp_path):
    values = write_gguf(tmp_path / "m.gguf", kind)
    source = GGUFSource(tmp_path / "m.gguf")
    for name, hf_name in {
        "token_embd": "model.embed_tokens",
        "blk.0.ffn_down": "model.layers.0.mlp.down_proj",
    }.items():
        assert np.array_equal(source.tensor(f"{hf_name}.weight").numpy(), values[name])
    heads = values["blk.0.attn_q"].reshape(
        4, 32, 2, 256
    )  # neighbours in the file are halves in the checkpoint
    q = source.tensor("model.layers.0.self_attn.q_proj.weight").numpy().reshape(4, 2, 32, 256)
    assert np.array_equal(q[:, 0], heads[:, :, 0])
    assert np.array_equal(q[:, 1], heads[:, :, 1])
    model = load_model(tmp_path, dtype=torch.float32)
    assert Driver(model, 4).step([(Text(), [1, 2, 3])]).shape == (1, 300)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
def test_kept_codes_stand_for_the_same_values(kind, tmp_path):
    values = write_gguf(tmp_path / "m.gguf", kind)
    codes = GGUFSource(tmp_path / "m.gguf").codes("model.layers.0.mlp.up_proj.weight")
    assert codes is not None
    wide = (codes.codes.float().view(256, 8, 32) - 8) * codes.scale[..., None] + codes.zero[..., None]
    expected = values["blk.0.ffn_up"]
    np.testing.assert_allclose(wide.view(256, 256).numpy(), expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", TYPES[3:])
def test_kept_matrices_of_every_type_are_small_and_close(kind, tmp_path):
    """In bfloat16 with compiled kernels; 17 tokens, so that activations are not rounded to 8 bits."""
    if reason_without():
        pytest.skip(reason_without())
    values = write_gguf(tmp_path / "m.gguf", kind)
    kept, plain = (load_model(tmp_path, dtype=torch.bfloat16, quantize=q) for q in ("keep", "none"))
    assert kept.weight_bytes < plain.weight_bytes * (0.35 if kind in ("Q4_0", "Q4_1", "Q4_K") else 0.55)
    held = kept.layers[0].mlp.gate_up.weight.rows(torch.arange(512)).double()
    wide = torch.from_numpy(np.concatenate((values["blk.0.ffn_gate"], values["blk.0.ffn_up"]))).double()
    assert (held - wide).norm() / wide.norm() < 1e-2


def test_a_file_cut_short_names_the_tensor(tmp_path):
    write_gguf(tmp_path / "m.gguf", "Q4_0")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[:-20_000])
    with pytest.raises(RequestError, match=r"m\.gguf: the file ends inside tensor blk\.0"):
        load_model(tmp_path, dtype=torch.float32)
    (tmp_path / "m.gguf").write_bytes(whole[:300])
    with pytest.raises(RequestError, match="header is cut off"):
        load_model(tmp_path, dtype=torch.float32)
    (tmp_path / "m.gguf").write_bytes(b"PK" + whole[2:])
    with pytest.raises(RequestError, match="not a GGUF file"):
        load_model(tmp_path, dtype=torch.float32)


def test_a_missing_tensor_and_an_unknown_architecture_are_named(tmp_path):
    write_gguf(tmp_path / "m.gguf", "Q8_0", drop="blk.0.ffn_up")
    with pytest.raises(RequestError, match=r"model\.layers\.0\.mlp\.up_proj\.weight is missing"):
        load_model(tmp_path, dtype=torch.float32)
    write_gguf(tmp_path / "m.gguf", "Q8_0", architecture="mamba")
    with pytest.raises(RequestError, match="'mamba' is not supported"):
        load_model(tmp_path, dtype=torch.float32)


BASE = {
    "vocab_size": 300,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "moe_intermediate_size": 64,
    "num_experts": 2,
}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "qwen3_moe", "gemma3_text"])
def test_names_are_those_of_the_gguf_package(kind, tmp_path):
    """What that package calls each checkpoint tensor is called back by its checkpoint name."""
    wanted = [
        n
        for s in build(read_model(BASE | {"model_type": kind}), dtype=torch.float32).builder.slots
        for n in s.shapes
    ]
    family = {"qwen3_moe": "QWEN3MOE", "gemma3_text": "GEMMA3"}.get(kind, kind.upper())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family], 2)
    write_gguf(tmp_path / "m.gguf", "F32", architecture=gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[family]])
    source = GGUFSource(tmp_path / "m.gguf")
    for name in wanted:
        stacked = re.sub(r"experts\.\d+\.", "experts.", name)
        held = names.get_name(stacked, try_suffixes=(".weight", ".bias"))
        assert held is not None
        source.file.tensors[held] = gguf_tensor(held, (2, 4, 4) if "_exps" in held else (4, 4))
        assert name in source.hf_names(held)


def gguf_tensor(name: str, shape: tuple[int, ...]) -> GGUFTensor:
    return GGUFTensor(name, gguf.GGMLQuantizationType.F32, shape, 0, 0)
