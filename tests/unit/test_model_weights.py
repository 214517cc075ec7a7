"""Loading and replacing weights: sharded files, broken files, and updates that leave the old weights
whole."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mortice.models.driver import Driver, Text
from mortice.models.load import load_model, read_spec
from mortice.models.random import random_model, random_weights
from mortice.specs.errors import RequestError
from mortice.specs.model_config import read_model

CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
UP = "model.layers.1.mlp.up_proj.weight"


def logits(model) -> torch.Tensor:
    return Driver(model, 4).step([(Text(), [3, 1, 4, 1, 5])])


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    return random_weights(random_model(read_model(CONFIG)), seed)


def write(folder, tensors) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "model.safetensors")


def write_shards(folder, tensors) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = sorted(tensors)
    where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(where.values()):
        save_file({n: tensors[n] for n in names if where[n] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def test_shards_and_one_file_give_the_same_model(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write(tmp_path / "one", weights())
    write_shards(tmp_path / "two", weights())
    one, two = (load_model(tmp_path / name, dtype=torch.float32) for name in ("one", "two"))
    assert torch.equal(logits(one), logits(two))
    assert read_spec(tmp_path / "one") == one.spec


def test_broken_folders_are_told_apart(tmp_path):
    with pytest.raises(RequestError, match="no such file or folder"):
        load_model(tmp_path / "nowhere", dtype=torch.float32)
    with pytest.raises(RequestError, match=r"neither config\.json nor a \.gguf file"):
        load_model(tmp_path, dtype=torch.float32)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RequestError, match="cannot be read as JSON"):
        load_model(tmp_path, dtype=torch.float32)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(RequestError, match=r"neither model\.safetensors nor"):
        load_model(tmp_path, dtype=torch.float32)


def test_a_file_cut_short_is_named(tmp_path):
    write(tmp_path, weights())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RequestError, match=r"model\.safetensors: not a whole safetensors file"):
        load_model(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop(UP), f"{UP} is missing"),
        (lambda t: t.update({UP: t[UP][:5].clone()}), rf"{UP} is \[5, 64\], expected \[96, 64\]"),
        (lambda t: t.update({UP: t[UP].to(torch.int8)}), f"{UP} is I8"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra has no place"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, expected, tmp_path):
    tensors = weights()
    change(tensors)
    write(tmp_path, tensors)
    with pytest.raises(RequestError, match=expected):
        load_model(tmp_path, dtype=torch.float32)


def test_an_index_that_lies_is_caught(tmp_path):
    write_shards(tmp_path, weights())
    index = tmp_path / "model.safetensors.index.json"
    mapping = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": mapping | {"ghost": "part-0.safetensors"}}))
    with pytest.raises(RequestError, match="ghost is in the index but not in the file"):
        load_model(tmp_path, dtype=torch.float32)
    index.write_text(json.dumps({"weight_map": mapping | {UP: "../outside.safetensors"}}))
    with pytest.raises(RequestError, match="file names in this folder"):
        load_model(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [(torch.float32, "none"), (torch.bfloat16, "none"), (torch.float32, "int8"), (torch.float32, "int4")],
)
def test_updated_weights_are_those_of_a_fresh_model(dtype, quantize, tmp_path):
    spec = read_model(CONFIG)
    model = random_model(spec, seed=0, dtype=dtype, quantize=quantize)
    before = logits(model)
    model.update_weights(weights(seed=1).items())
    fresh = random_model(spec, seed=1, dtype=dtype, quantize=quantize)
    assert torch.equal(logits(model), logits(fresh))
    assert not torch.equal(logits(model), before)
    write(tmp_path, weights(seed=0))
    model.update_weights(tmp_path)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop(UP),
        lambda t: t.update({UP: t[UP].T.contiguous()}),
        lambda t: t.update({UP: t[UP].long()}),
        lambda t: t.update({"model.layers.9.mlp.up_proj.weight": t[UP]}),
    ],
)
def test_a_refused_update_leaves_the_old_weights_whole(change):
    model = random_model(read_model(CONFIG))
    before = logits(model)
    tensors = weights(seed=1)
    change(tensors)
    with pytest.raises(RequestError, match="up_proj"):
        model.update_weights(tensors.items())
    assert torch.equal(logits(model), before)


def test_an_update_by_another_model_is_refused(tmp_path):
    model = random_model(read_model(CONFIG | {"rope_theta": 5e5}))
    write(tmp_path, weights())
    with pytest.raises(RequestError, match="another shape"):
        model.update_weights(tmp_path)


@pytest.mark.parametrize(("quantize", "error"), [("int8", 0.02), ("int4", 0.2)])
@pytest.mark.parametrize("num_tokens", [3, 40])
def test_quantised_models_stay_near(quantize, error, num_tokens):
    """Relative to the spread of the logits; both ways of multiplying, for few rows and for many."""
    plain, small = (random_model(read_model(CONFIG), quantize=q) for q in ("none", quantize))
    tokens = [i % 96 for i in range(num_tokens)]
    expected, found = (Driver(m, 4).step([(Text(), tokens)], all_logits=True) for m in (plain, small))
    assert (found - expected).std() < error * expected.std()


def test_sizes_count_what_a_step_reads():
    spec = read_model(CONFIG | {"tie_word_embeddings": True})
    model = random_model(spec)
    matrices = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96) + 96 * 64
    assert model.weight_bytes == 4 * matrices
    assert model.flops_per_token == 2 * matrices


def test_options_that_make_no_sense_are_refused(tmp_path):
    write(tmp_path, weights())
    with pytest.raises(RequestError, match="keep needs a GGUF"):
        load_model(tmp_path, dtype=torch.float32, quantize="keep")
    with pytest.raises(RequestError, match="quantize must be"):
        load_model(tmp_path, dtype=torch.float32, quantize="int2")
