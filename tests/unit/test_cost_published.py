"""The published convention gives back the cells that the Step-3 paper prints, digit by digit.

Acceptance figures 1 to 4, 8 and 17 of the project's reference. A cell agrees when our unrounded value rounds to the
printed digits; no other tolerance is used.
"""

import pytest

from mortice.cost import (
    PUBLISHED,
    arithmetic_intensity,
    attention_flops,
    attention_usd_per_token,
    ffn_flops,
    ffn_usd_per_token,
    kv_read_bytes,
    linear_flops,
    published_hardware,
    training_usd_per_token,
    unit_cost,
)
from mortice.cost.published import UnitCost
from mortice.specs.catalogue import load_model, published_tables

STEP3 = published_tables("step3")
MODELS = sorted(STEP3["table2"]["cells"])
CARDS = list(STEP3["hardware"])


# Cells that the printed three-digit unit costs miss: by model, card and context.
MISSES_FROM_PRINTED_UNITS = {
    ("deepseek-v3", "h800", 32768),
    ("ernie-4.5-300b", "ascend-910b", 32768),
    ("kimi-k2", "h800", 32768),
    ("llama-4-maverick", "a800", 32768),
    ("llama-4-maverick", "ascend-910b", 32768),
    ("llama-4-maverick", "h20", 8192),
    ("minimax-m1", "h800", 32768),
    ("pangu-pro-moe", "a800", 32768),
    ("pangu-pro-moe", "ascend-910b", 8192),
    ("pangu-pro-moe", "ascend-910b", 32768),
    ("pangu-pro-moe", "h20", 32768),
    ("qwen3-235b-a22b", "a800", 32768),
    ("qwen3-235b-a22b", "ascend-910b", 8192),
    ("qwen3-235b-a22b", "ascend-910b", 32768),
    ("qwen3-32b", "ascend-910b", 32768),
    ("qwen3-32b", "h800", 8192),
    ("step-3", "ascend-910b", 32768),
}


def three_digits(value: float) -> float:
    return float(f"{value:.2e}")


@pytest.mark.parametrize("table", ["table2", "table3"])
@pytest.mark.parametrize("model", MODELS)
def test_tables_2_and_3(table, model):
    context = STEP3[table]["context"]
    shape = load_model(model)
    ours = {
        "kv_bytes": kv_read_bytes(shape, context, "fp8", PUBLISHED),
        "attention_flops": attention_flops(shape, context, PUBLISHED),
        "linear_flops": linear_flops(shape, PUBLISHED),
        "ffn_flops": ffn_flops(shape),
    }
    assert {name: three_digits(value) for name, value in ours.items()} == STEP3[table]["cells"][model]


def table6(cost_of):
    """(cell name, ours, printed) of all 108 cells; `cost_of` gives a card's unit cost."""
    for model in MODELS:
        shape = load_model(model)
        for card in CARDS:
            cost = cost_of(card)
            for context in (8192, 32768):
                ours = 1e6 * attention_usd_per_token(shape, cost, context)
                yield (model, card, context), ours, STEP3["table6"][f"attention_{context}"][model][card]
            yield (
                (model, card, "ffn"),
                1e6 * ffn_usd_per_token(shape, cost),
                STEP3["table6"]["ffn"][model][card],
            )


def test_table_6_all_108_cells():
    cells = list(table6(lambda card: unit_cost(published_hardware(card))))
    assert len(cells) == 108
    assert [cell for cell, ours, printed in cells if f"{ours:.3f}" != f"{printed:.3f}"] == []


def test_table_6_from_the_printed_unit_costs_misses_17_cells():
    """Guards against silent rounding: the paper did not compute with the unit costs that it prints."""

    def printed_cost(card: str) -> UnitCost:
        flop, byte = STEP3["table5"]["cells"][card]
        return UnitCost(flop=flop, byte=byte, dtype="")

    misses = {cell for cell, ours, printed in table6(printed_cost) if f"{ours:.3f}" != f"{printed:.3f}"}
    assert misses == MISSES_FROM_PRINTED_UNITS
    assert len(misses) == 17


@pytest.mark.parametrize("card", CARDS)
def test_table_5_within_half_a_percent(card):
    cost = unit_cost(published_hardware(card))
    assert [cost.flop, cost.byte] == pytest.approx(STEP3["table5"]["cells"][card], rel=5e-3)


def test_intensity_of_homogeneous_stacks_is_a_constant():
    expected = {
        "step-3": 128,
        "deepseek-v3": 512,
        "kimi-k2": 256,
        "qwen3-235b-a22b": 32,
        "qwen3-32b": 16,
        "ernie-4.5-300b": 16,
        "pangu-pro-moe": 10,
    }
    for context in (1, 8192, 131072):
        ours = {m: arithmetic_intensity(load_model(m), context, rule=PUBLISHED) for m in expected}
        assert ours == pytest.approx(expected, rel=1e-12)


def test_intensity_of_hybrids_hangs_on_context():
    intensity = {
        (m, s): arithmetic_intensity(load_model(m), s, rule=PUBLISHED)
        for m in ("llama-4-maverick", "minimax-m1")
        for s in (8192, 32768)
    }
    assert {key: round(value, 2) for key, value in intensity.items()} == {
        ("llama-4-maverick", 8192): 8.0,
        ("llama-4-maverick", 32768): 6.36,
        ("minimax-m1", 8192): 3.70,
        ("minimax-m1", 32768): 5.95,
    }


@pytest.mark.parametrize("model", ["pangu-pro-moe", "step-3"])
def test_figure_4_training(model):
    cost = unit_cost(published_hardware("ascend-910b"))
    ours = 1e6 * training_usd_per_token(load_model(model), cost, 8192)
    assert f"{ours:.3f}" == f"{STEP3['figure4']['training']['8192'][model]:.3f}"


@pytest.mark.parametrize(
    ("context", "model", "total", "kv"),
    [
        (8192, "llama-4-maverick", 0.175, 1.007),
        (8192, "minimax-m1", 0.179, 0.923),
        (8192, "step-3", 0.063, 0.256),
        (32768, "llama-4-maverick", 0.376, 2.215),
        (32768, "minimax-m1", 0.346, 1.929),
        (32768, "step-3", 0.191, 1.023),
        (131072, "llama-4-maverick", 1.177, 7.046),
        (131072, "minimax-m1", 1.014, 5.956),
        (131072, "step-3", 0.700, 4.094),
    ],
)
def test_figure_3_on_the_h800(context, model, total, kv):
    shape, cost = load_model(model), unit_cost(published_hardware("h800"))
    ours = 1e6 * (attention_usd_per_token(shape, cost, context) + ffn_usd_per_token(shape, cost))
    assert ours == pytest.approx(total, abs=1e-3)  # our reference prints these rounded twice
    assert kv_read_bytes(shape, context, "fp8", PUBLISHED) / 1e9 == pytest.approx(
        kv, abs=1e-3
    )  # our reference prints these rounded twice
