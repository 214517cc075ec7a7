"""The planner against published figures. Each test says its tolerance and why it is that wide."""

import msgspec
import numpy as np
import pytest

from mortice.cost import (
    HONEST,
    PUBLISHED,
    Formats,
    Kernels,
    Layout,
    Speculation,
    decode_step,
    max_batch,
    prefill_step,
    published_hardware,
)
from mortice.plan import afd
from mortice.plan.context import equal_cost_chunks
from mortice.plan.density import density_row, terms
from mortice.plan.inputs import STEP3_HARDWARE, STEP3_MODELS
from mortice.plan.links import max_tokens_per_ffn
from mortice.plan.pipeline import stage_budget_s
from mortice.plan.placement import formats_for
from mortice.plan.published import STEP3_RUNS, names, published, step3_deployment
from mortice.plan.supernode import attention_shape, chunk_pipeline, long_prefill, rack_sums
from mortice.plan.token_cost import best_placement, drafts_pay, token_cost, usd_per_mtok
from mortice.specs.catalogue import load_hardware, load_model, load_rack, published_tables
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec


def placement(model: str, context: int):
    shape = load_model(model)
    return best_placement(
        [token_cost(shape, published_hardware(card), context, PUBLISHED) for card in STEP3_HARDWARE]
    )


@pytest.mark.parametrize("name", [n for n in names() if n not in ("step3.table5", "step3.table9")])
def test_published_tables_cell_by_cell(name: str) -> None:
    """Every cell rounds to the printed digits (closed arithmetic); throughput of table 8 within 5 %."""
    table = published(name)
    assert [c for c in table.cells if not c.agrees] == []


def test_table_5_is_truncated_in_print_for_the_h800_only() -> None:
    misses = [(c.row, c.column) for c in published("step3.table5").cells if not c.agrees]
    assert misses == [("h800", "USD per FLOP")]


@pytest.mark.parametrize(
    ("model", "context", "printed"),
    [
        ("step-3", 8192, 0.055),
        ("deepseek-v3", 8192, 0.068),
        ("qwen3-235b-a22b", 8192, 0.062),
        ("step-3", 32768, 0.129),
        ("deepseek-v3", 32768, 0.211),
        ("qwen3-235b-a22b", 32768, 0.193),
    ],
)
def test_best_pair(model: str, context: int, printed: float) -> None:
    """Half of the last printed digit."""
    assert placement(model, context).afd_usd_per_mtok == pytest.approx(printed, abs=0.0005)


def test_best_placements_exactly() -> None:
    """Step-3 wants H20 for attention and H800 for experts, DeepSeek-V3 and Kimi K2 all H800; the others as Step-3."""
    for model in STEP3_MODELS:
        for context in (8192, 32768):
            found = placement(model, context)
            attention = "h800" if model in ("deepseek-v3", "kimi-k2") else "h20"
            assert (found.attention.hardware, found.ffn.hardware) == (attention, "h800"), model


@pytest.mark.parametrize(
    ("model", "context", "alone", "hardware"),
    [
        ("step-3", 8192, 0.0632, "h800"),
        ("step-3", 32768, 0.1539, "h20"),
        ("ernie-4.5-300b", 8192, 0.1197, "h20"),
        ("deepseek-v3", 8192, 0.0677, "h800"),
    ],
)
def test_best_single_hardware(model: str, context: int, alone: float, hardware: str) -> None:
    found = placement(model, context).homogeneous
    assert (found.hardware, round(found.usd_per_mtok, 4)) == (hardware, alone)


def test_weak_hardware_plan_of_the_l20() -> None:
    """Section 6 of Step-3, 1 % (printed rounded): what an L20 moves in one stage of 272 us, and what is left for KV."""
    printed = published_tables("step3")["l20"]
    stage = printed["bw"] * 272e-6
    assert stage / 1e6 == pytest.approx(printed["bytes_per_stage_MB"], rel=0.01)
    linear = 7168 * 2048 + 2048 * 16384 + 2 * 7168 * 256 + 16384 * 7168 / 8
    assert linear / 1e6 == pytest.approx(printed["linear_MB"], rel=0.01)
    kv = stage - linear
    assert kv / 1e6 == pytest.approx(printed["kv_MB"], rel=0.01)
    assert kv / 512 == pytest.approx(printed["max_tokens"], rel=0.01)
    assert kv / 512 / 8000 == pytest.approx(printed["max_batch_8k"], rel=0.01)
    ffn = stage / 2
    assert ffn / 1e6 == pytest.approx(printed["ffn_MB_per_layer_at_50pct"], rel=0.01)
    assert ffn * 61 / 1e9 == pytest.approx(printed["ffn_GB_per_card"], rel=0.01)
    assert -(-300e9 // (8 * ffn * 61)) == printed["servers"]


@pytest.mark.parametrize(
    ("system", "batch", "gpus", "tgs", "tpot_ms"),
    [("2A2F", 6144, 32, 4039, 47.5), ("3A2F", 6048, 40, 3321, 45.5), ("4A2F", 6144, 48, 2643, 48.4)],
)
def test_implied_tpot(system: str, batch: int, gpus: int, tgs: float, tpot_ms: float) -> None:
    """1 %: bookkeeping of batch and GPUs; all below the SLO of 50 ms."""
    implied = batch / (gpus * tgs) * 1e3
    assert implied == pytest.approx(tpot_ms, rel=0.01)
    assert implied < 50


def test_throughput_of_2a2f() -> None:
    """3,840 (6,144 sequences in exactly 50 ms) to 10 % more: it is bound by the SLO, and the paper's 4,039 is its best
    minute. The planner finds the batch by itself."""
    found = afd.candidate(step3_deployment(4096, "fp8"), 2, 2, 3)
    assert 3840 <= found.tgs <= 4224
    assert found.limited_by == "tpot"


@pytest.mark.parametrize("run", STEP3_RUNS, ids=lambda run: run[0])
def test_throughput_of_other_layouts(run: tuple) -> None:
    """5 % at the paper's own batch: linear scaling and jitter."""
    _, num_a, num_f, context, kv, per_gpu, printed = run
    found = afd.candidate(step3_deployment(context, kv), num_a, num_f, 3, per_gpu)
    assert found.tgs == pytest.approx(printed, rel=0.05)


def test_table_9_misses_mla_on_the_h800_only_without_measured_kernels() -> None:
    misses = [(c.row, c.column) for c in published("step3.table9").cells if not c.agrees]
    assert misses == [("deepseek-v3", "us at 32768, h800")]


def test_throughput_of_3a4f_is_set_by_the_attention_end() -> None:
    """3,291 tokens/s and GPU, analytic in the paper; 5 %. The model above 600 B has 96 experts."""
    most, end = max_tokens_per_ffn(
        budget_s=stage_budget_s(0.05, 61),
        hidden_size=7168,
        num_attention=3,
        num_ffn=4,
        attention_net=8 * 40e9,
        ffn_net=8 * 40e9,
    )
    assert end == "attention"
    assert 3 * most / (56 * 0.05) == pytest.approx(3291, rel=0.05)


FASTAFD = [
    ("minimax-m2.5", 8192, 48, 17, 1.45),
    ("minimax-m2.5", 16384, 24, 17, 1.35),
    ("qwen3-235b-a22b", 8192, 64, 7, 1.41),
    ("qwen3-235b-a22b", 16384, 32, 11, 1.44),
]


@pytest.mark.parametrize(("model", "context", "batch", "num_attention", "measured"), FASTAFD)
def test_fastafd_batches_follow_from_the_memory_of_one_node(
    model: str, context: int, batch: int, num_attention: int, measured: float
) -> None:
    """The baseline is not said to be one node of four packages with all experts in 8 bit and KV in BF16, but its batches
    are those that such a node holds, within 10 %, and no wider expert group gives them: so it is taken for it."""
    shape, gb200 = load_model(model), load_hardware("gb200")
    formats = formats_for(gb200, "fp8", "bf16")

    def held(ranks: int) -> float:
        return float(max_batch(shape, gb200, Layout(dp=ranks, ep=ranks), float(context), formats)) / ranks

    assert held(4) == pytest.approx(batch, rel=0.10)
    assert held(16) > 1.25 * batch


@pytest.mark.parametrize(("model", "context", "batch", "num_attention", "measured"), FASTAFD)
def test_fastafd_from_first_principles(
    model: str, context: int, batch: int, num_attention: int, measured: float
) -> None:
    """10 %, sign right (aiconfigurator's is wrong on all four). Nothing measured on the case enters: our kernels, our
    links, the pipeline's period, whole instances of four packages against the node that keeps both together."""
    shape, gb200 = load_model(model), load_hardware("gb200")
    p = afd.problem(
        shape, gb200, gb200, context, kv="bf16", weights="fp8", one_domain=True,
        gpus_attention=4, gpus_ffn=4, tpot_s=1.0, imbalance=1.0,
    )  # fmt: skip
    # The engine fills its memory to the brim and runs without stragglers inside one rack.
    p = msgspec.structs.replace(p, jitter_s=0.0, memory_share=1.0, runtime_bytes=0.0)
    cut = afd.candidate(p, num_attention, 1, 2, batch * 3 // 4)
    together = decode_step(
        shape,
        Kernels(gb200),
        Layout(dp=4, ep=4),
        4 * batch,
        context,
        formats=formats_for(gb200, "fp8", "bf16"),
    )
    said = cut.tgs / (batch / float(together.total_s))
    assert said > 1
    assert said == pytest.approx(measured, rel=0.10)


@pytest.mark.xfail(
    reason="the batch of each run and the time of an engine's step are not published; between the two cuts the published "
    "throughput of an attention die rises by 10 %, which no pipeline of equal parts gives",
    strict=True,
)
@pytest.mark.parametrize(
    ("context", "num_attention", "seen"),
    [(16384, 48, -0.053), (16384, 64, 0.113), (32768, 48, -0.100), (32768, 64, 0.090)],
)
def test_ascend_wins_and_losses(context: int, num_attention: int, seen: float) -> None:
    """Sign and 5 points: DeepSeek-V3.2 on dies of the 910C, EP64 against 16 F dies, both with memory full."""
    shape, package = load_model("deepseek-v3"), load_hardware("ascend-910c")
    die = one_die(package)
    formats = formats_for(die, "int8", "bf16")
    held = int(float(max_batch(shape, die, Layout(dp=64, ep=64), float(context), formats))) // 64
    step = decode_step(shape, Kernels(die), Layout(dp=64, ep=64), 64 * held, context, formats=formats)
    p = afd.problem(
        shape, die, die, context, kv="bf16", weights="int8", one_domain=True, gpus_attention=1, gpus_ffn=1,
        tpot_s=1.0, selective=True, imbalance=1.0,
    )  # fmt: skip
    cut = afd.candidate(p, num_attention, 16, 2, afd.memory(p).sequences_per_gpu // 2)
    said = cut.tgs / (held / float(step.total_s)) - 1
    assert said * seen > 0
    assert said == pytest.approx(seen, abs=0.05)


def one_die(package: HardwareSpec) -> HardwareSpec:
    """Half of a package of two dies, as engines count devices on it."""
    links = tuple(
        msgspec.structs.replace(link, bytes_per_s=link.bytes_per_s / 2, span=2 * link.span)
        for link in package.links
    )
    return msgspec.structs.replace(
        package,
        peaks={name: peak / 2 for name, peak in package.peaks.items()},
        memory_bytes=package.memory_bytes / 2,
        memory_bytes_per_s=package.memory_bytes_per_s / 2,
        links=links,
        dies_per_package=1,
    )


def test_inferencex_price_cells() -> None:
    """GB200 at 2.21 USD an hour, 0.005."""
    for rate, usd in ((1613.8, 0.38), (2004.5, 0.31), (3148, 0.20)):
        assert usd_per_mtok(2.21, rate) == pytest.approx(usd, abs=0.005)


def test_rack_sums() -> None:
    """1 %: 7.92 EF of the 8 announced, 1.70 PB/s, 93.2 TB of 100, which stays flagged."""
    cpx = {row["quantity"]: row for row in rack_sums(load_rack("vera-rubin-nvl144-cpx"))}
    assert cpx["fp4"]["ours"] == pytest.approx(7.92e18, rel=0.01)
    assert cpx["bandwidth"]["ours"] == pytest.approx(1.70e15, rel=0.01)
    assert cpx["memory"]["ours"] == pytest.approx(93.2e12, rel=0.01)
    assert "unexplained" in cpx["memory"]["flag"]
    assert not cpx["bandwidth"]["flag"]
    rubin = {row["quantity"]: row for row in rack_sums(load_rack("vera-rubin-nvl72"))}
    assert rubin["scale_up"]["ours"] == pytest.approx(259.2e12, rel=0.01)


def test_pipeline_of_chunks_beats_wide_tensor_parallelism() -> None:
    """SGLang, DeepSeek-V3.1 on H20 against one node: PP4 of TP8 3.31 times, TP32 2.54; 10 % and the order. Prompts of
    128K (the length is not in the reference; at 64K TP32 would be 1.9, at 256K 3.0) in eleven chunks of equal cost."""
    shape, kernels, formats = load_model("deepseek-v3"), Kernels(load_hardware("h20")), Formats(weights="fp8")
    chunks = np.array(equal_cost_chunks(attention_shape(shape), 131_072, 11, granule=64), dtype=float)
    prefix = np.cumsum(chunks) - chunks

    def seconds(tp: int) -> np.ndarray:
        return np.asarray(
            prefill_step(shape, kernels, Layout(tp=tp, ep=tp), chunks, prefix, formats=formats).total_s
        )

    node = seconds(8)
    done = np.zeros(4)  # when each stage is free, chunk by chunk
    for chunk in node / 4:
        arrived = 0.0
        for stage in range(4):
            arrived = done[stage] = max(arrived, done[stage]) + chunk
    piped, wide = node.sum() / done[-1], node.sum() / seconds(32).sum()
    assert piped == pytest.approx(3.31, rel=0.10)
    assert wide == pytest.approx(2.54, rel=0.10)
    assert piped > wide


@pytest.mark.parametrize("model", ["deepseek-v3", "kimi-k2"])
def test_prefill_shape_of_latent_models(model: str) -> None:
    shape = attention_shape(load_model(model))
    assert (shape.qk_dim, shape.value_dim) == (192, 128)
    assert long_prefill(load_model(model), load_hardware("gb200"), 72, 1_000_000).seconds < 60


def test_four_bit_deepseek_needs_three_cpx() -> None:
    """336 GB in 4 bit: two CPX of 128 GB do not hold it, and the message says how many do."""
    with pytest.raises(RequestError, match=r"nearest feasible is \d"):
        chunk_pipeline(load_model("deepseek-v3"), load_hardware("rubin-cpx"), 2, 1_000_000, "fp4")
    assert (
        chunk_pipeline(load_model("deepseek-v3"), load_hardware("rubin-cpx"), 144, 1_000_000, "fp4").seconds
        > 0
    )


def test_drafting_does_not_pay_for_deepseek_on_h20() -> None:
    """Its attention is compute bound there, so every drafted token costs its full price."""
    drafts = Speculation(drafted=1, accepted=1.7)
    h20, h800 = published_hardware("h20"), published_hardware("h800")
    pays, factor = drafts_pay(load_model("deepseek-v3"), h20, 8192, PUBLISHED, drafts)
    assert not pays
    assert factor == pytest.approx(2 / 1.7, rel=1e-6)
    assert drafts_pay(load_model("qwen3-235b-a22b"), h800, 8192, PUBLISHED, drafts)[0]


def test_tiles_take_the_advantage_of_grouped_attention_on_h20() -> None:
    """Sixteen query rows a KV head fill a quarter of the tile: 8K attention of Qwen3-235B rises from .054 to .086."""
    shape, h20 = load_model("qwen3-235b-a22b"), published_hardware("h20")
    printed = token_cost(shape, h20, 8192, PUBLISHED).attention_usd_per_mtok
    tiled = msgspec.structs.replace(PUBLISHED, pad_tiles=True)
    padded = token_cost(shape, h20, 8192, tiled).attention_usd_per_mtok
    assert printed == pytest.approx(0.054, abs=0.0005)
    assert padded == pytest.approx(0.086, abs=0.0005)


def test_drafted_tokens_cost_in_steps_of_the_tile() -> None:
    """Sixteen rows a head: up to four tokens share a tile of 64, the fifth opens another."""
    shape, h20 = load_model("qwen3-235b-a22b"), load_hardware("h20")
    kernels, attention = Kernels(h20), shape.groups[0].attention

    def core(q_len: int) -> float:
        return float(kernels.decode_attention(attention, 64, 8192, q_len=q_len, kv_dtype="fp8"))

    assert core(4) == pytest.approx(core(1))
    assert core(5) > 1.5 * core(4)


def test_density_below_the_minimum_names_both_remedies() -> None:
    shape, h800 = load_model("deepseek-v3"), published_hardware("h800")
    row = density_row(shape, h800, terms(shape, h800, PUBLISHED))
    assert not row.fits
    assert row.num_experts_needed == 14
    assert row.net_needed_bytes_per_s == pytest.approx(6.65e11, rel=0.01)
    assert density_row(shape, h800, terms(shape, h800, HONEST)).min_density == pytest.approx(0.0726, rel=0.01)
