"""Hardware, racks and models as data: units that are checked, one line for each mistake, nothing guessed silently."""

import json

import pytest
import yaml

from mortice.cost import active_parameters, parameters
from mortice.specs.catalogue import (
    hardware_names,
    load_hardware,
    load_model,
    load_rack,
    model_names,
    rack_names,
)
from mortice.specs.errors import NotFound, RequestError
from mortice.specs.hardware_file import read_hardware
from mortice.specs.model_config import READERS, read_model
from mortice.specs.quantity import quantity
from mortice.specs.shape_config import SHAPE_READERS, read_shape

CARD = {
    "name": "card",
    "per": "package",
    "architecture": "sm90",
    "peaks": {"bf16": "100 TFLOP/s dense"},
    "memory": {"size": "80 GB", "bandwidth": "2 TB/s"},
    "links": [{"tier": "node", "bandwidth": "400 GB/s bidi", "span": 8}],
    "price": {"value": "1.5 USD/h", "source": "a quote"},
}


def changed(**fields):
    return CARD | fields


def test_every_entry_that_ships_loads_and_says_where_it_comes_from():
    for name in hardware_names():
        spec = load_hardware(name)
        assert spec.name == name
        assert spec.source
        assert spec.date
        assert spec.memory_bytes > 0
    for name in model_names():
        assert load_model(name).num_layers > 0
    assert {"h800", "h20", "a800", "ascend-910b", "rubin-cpx", "l20", "epyc-9654"} <= set(hardware_names())


def test_a_file_becomes_base_units_per_package():
    spec = read_hardware(CARD)
    assert spec.peak("bf16") == 1e14
    assert spec.link("node").bytes_per_s == 2e11  # half of what both directions add up to
    assert spec.usd_per_second == 1.5 / 3600
    two = read_hardware(changed(per="die", dies_per_package=2))
    assert (two.peak("bf16"), two.memory_bytes, two.link("node").bytes_per_s) == (2e14, 1.6e11, 4e11)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"colour": "green"}, "colour"),
        ({"peaks": {"bf16": "100 TFLOP/s"}}, "peaks.bf16"),
        ({"peaks": {"bf16": "100 TB/s dense"}}, "TB/s"),
        ({"peaks": {"bf17": "100 TFLOP/s dense"}}, "bf17"),
        ({"peaks": {"bf16": "100 TFLOP/s dense", "fp8": "400 TFLOP/s dense"}}, "sparse"),
        ({"memory": {"size": "80 GB", "bandwidth": "2 TFLOP/s"}}, "memory.bandwidth"),
        ({"memory": {"size": "-80 GB", "bandwidth": "2 TB/s"}}, "memory.size"),
        ({"memory": {"size": "80 GB"}}, "bandwidth"),
        ({"links": [{"tier": "node", "bandwidth": "400 GB/s", "span": 8}]}, "uni or bidi"),
        ({"price": {"value": "-1 USD/h", "source": "x"}}, "price.value"),
        ({"price": {"value": "0 USD/h", "source": "x"}}, "price.value"),
        ({"price": {"value": "1 EUR/h", "source": "x"}}, "EUR/h"),
        ({"per": "card"}, "per"),
        ({"dies_per_package": 0}, "dies_per_package"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(fields, named):
    with pytest.raises(RequestError) as caught:
        read_hardware(changed(**fields))
    assert named in caught.value.message
    assert "\n" not in caught.value.message


def test_a_sparse_peak_is_never_taken_for_a_dense_one():
    spec = read_hardware(changed(peaks={"bf16": "100 TFLOP/s dense", "fp8_sparse": "400 TFLOP/s sparse"}))
    with pytest.raises(RequestError, match="sparsity"):
        spec.peak("fp8")
    assert load_hardware("rubin-cpx").peak("fp4") < load_hardware("rubin-cpx").sparse_peaks["fp4"]


def test_a_missing_peak_and_a_missing_price_are_said():
    with pytest.raises(RequestError, match="a800 has no fp8"):
        load_hardware("a800").peak("fp8")
    with pytest.raises(RequestError, match="no price"):
        _ = load_hardware("rubin-cpx").usd_per_second
    assert load_hardware("ascend-910b").price.status == "estimate"


@pytest.mark.parametrize(
    ("text", "value"),
    [("3.35 TB/s", 3.35e12), ("400 Gb/s", 5e10), ("1e3 GB/s", 1e12)],
)
def test_quantities(text, value):
    assert quantity(text, "B/s", "x")[0] == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "3", "3TB/s", "nan TB/s", "inf TB/s", 3, None, "3 TB/s fast"])
def test_what_is_no_quantity(text):
    with pytest.raises(RequestError, match="x "):
        quantity(text, "B/s", "x")


def test_rack_sums():
    """Acceptance figure 29: the announced totals within their own rounding, 100 TB flagged."""
    cpx = load_rack("vera-rubin-nvl144-cpx")
    assert cpx.totals["fp4"] == pytest.approx(7.92e18, rel=1e-3)
    assert cpx.totals["bandwidth"] == pytest.approx(1.70e15, rel=1e-2)
    assert cpx.totals["memory"] == pytest.approx(93.2e12, rel=1e-3)
    assert "100 TB" in cpx.discrepancies["memory"]
    assert load_rack("vera-rubin-nvl72").totals["scale_up"] == pytest.approx(259.2e12)
    assert load_rack("vera-rubin-nvl72").packages == 72
    assert [load_rack(name).name for name in rack_names()] == rack_names()


def test_dies_taken_for_packages_are_rejected(tmp_path):
    """Hard case 17: NVL144 is 144 dies; 144 times a figure per package is twice the rack."""
    file = tmp_path / "nvl144.yaml"
    rack = {
        "name": "mine",
        "parts": {"vera-rubin": "144 packages"},
        "stated": {"fp4": "3.6 EFLOP/s unstated"},
    }
    file.write_text(yaml.safe_dump(rack))
    with pytest.raises(RequestError, match="dies or packages"):
        load_rack(str(file))
    file.write_text(yaml.safe_dump(rack | {"parts": {"vera-rubin": "144 dies"}}))
    assert load_rack(str(file)).packages == 72


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"parts": {}}, "parts is empty"), ({"domain": "h20"}, "none of its parts"), ({"parts": {"h9": "1 package"}}, "h9"),
     ({"parts": {"h800": "-3 packages"}}, "above 0"), ({"name": ["x"]}, "name must be text")],
)  # fmt: skip
def test_a_wrong_rack_is_one_line(fields, named, tmp_path):
    file = tmp_path / "rack.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", "parts": {"h800": "8 packages"}} | fields))
    with pytest.raises(RequestError, match=named) as caught:
        load_rack(str(file))
    assert "\n" not in caught.value.message


def test_a_users_file_starts_from_an_entry(tmp_path):
    file = tmp_path / "ours.yaml"
    file.write_text("base: h800\nname: ours\nprice: {value: 1.2 USD/h, source: our contract}\n")
    ours = load_hardware(str(file))
    assert (ours.price.usd_per_hour, ours.price.status) == (1.2, "user")
    assert ours.peaks == load_hardware("h800").peaks


BOMB = (
    "a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b]\nname: *c\n"
)


@pytest.mark.parametrize(
    "text",
    ["- a list", "a: [", "\x00", "base: nothing\n", "[" * 20_000, BOMB, "base: h800\nname: " + "x" * 500],
)
def test_a_broken_users_file_is_one_line(tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(RequestError) as caught:
        load_hardware(str(file))
    assert "\n" not in caught.value.message


def test_an_unknown_name_gets_a_hint():
    with pytest.raises(NotFound, match="h800"):
        load_hardware("h80")
    with pytest.raises(NotFound, match="deepseek-v3"):
        load_model("deepseek-v33")


@pytest.mark.parametrize(
    ("model", "total", "active"),
    [  # billions, as their cards say
        ("deepseek-v3", 671, 37),
        ("kimi-k2", 1026, 32),
        ("qwen3-235b-a22b", 235, 22),
        ("qwen3-32b", 32.8, 32),
        ("llama-4-maverick", 400, 17),
        ("minimax-m1", 456, 45.9),
        ("ernie-4.5-300b", 300, 47),
        ("pangu-pro-moe", 72, 16),
        ("step-3", 316, 38),
        ("mixtral-8x7b", 46.7, 12.9),
        ("gemma-3-27b", 27, 27),
        ("gpt-oss-120b", 117, 5.1),
    ],
)
def test_parameters_are_those_of_the_model_cards(model, total, active):
    shape = load_model(model)
    assert parameters(shape) / 1e9 == pytest.approx(total, rel=0.01)
    assert active_parameters(shape) / 1e9 == pytest.approx(active, rel=0.055)  # some cards count embeddings


def test_shapes_agree_with_the_engines_specs():
    """Every family that the engine runs has the same sizes for the planner."""
    assert set(READERS) <= set(SHAPE_READERS)
    for name in (
        "llama-3.1-8b",
        "qwen3-30b-a3b",
        "mixtral-8x7b",
        "deepseek-v2-lite",
        "step-3",
        "gemma-3-27b",
    ):
        path = f"{name}.json"
        values = json.loads((_models() / path).read_text())
        spec, shape = read_model(values), read_shape(values, name)
        elements = sum(heads * dim for heads, dim in spec.attention.kv_planes)
        assert {group.attention.kv_elements for group in shape.groups} == {elements}
        assert shape.num_layers == spec.num_layers
        windows = [shape.groups[group].attention.window for group in shape.order]
        assert windows == [spec.window(layer) for layer in range(spec.num_layers)]
        experts = [shape.groups[group].ffn.is_moe for group in shape.order]
        assert experts == [spec.has_experts(layer) for layer in range(spec.num_layers)]


def _models():
    from mortice.specs.catalogue.load import HERE

    return HERE / "models"


LLAMA = json.loads((_models() / "llama-3.1-8b.json").read_text())


def test_a_folder_with_a_config_stands_for_a_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert load_model(str(tmp_path)).groups == load_model("llama-3.1-8b").groups
    assert load_model(str(tmp_path / "config.json")).name == tmp_path.name


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("hidden_size", None, "hidden_size is missing"),
        ("num_key_value_heads", 7, "num_key_value_heads"),
        ("num_hidden_layers", 10**9, "num_hidden_layers"),
        ("vocab_size", -1, "vocab_size"),
        ("model_type", "mamba", "model_type"),
        ("intermediate_size", "wide", "intermediate_size"),
    ],
)
def test_a_wrong_config_field_is_named(field, value, named):
    with pytest.raises(RequestError, match=named):
        read_shape({k: v for k, v in (LLAMA | {field: value}).items() if v is not None}, "x")


def test_what_a_config_leaves_open_is_listed():
    shape = read_shape(
        {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "torch_dtype")}, "x"
    )
    assert any("num_key_value_heads" in each for each in shape.assumed)
    assert any("torch_dtype" in each for each in shape.assumed)


def test_a_misspelt_dimension_is_not_replaced_by_its_default():
    values = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"} | {"num_key_value_head": 8}
    with pytest.raises(
        RequestError, match="num_key_value_head is not known; did you mean num_key_value_heads"
    ):
        read_shape(values, "x")


def test_a_vision_wrapper_is_read_through():
    text = json.loads((_models() / "llama-4-maverick.json").read_text())
    shape = read_shape({"model_type": "llama4", "text_config": text}, "wrapped")
    assert shape.groups == load_model("llama-4-maverick").groups
