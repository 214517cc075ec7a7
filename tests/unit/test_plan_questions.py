"""The questions as a planner meets them: layouts that do not divide, cards without prices, plans that lose."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from mortice.cost import (
    HONEST,
    PUBLISHED,
    Kernels,
    Layout,
    Speculation,
    decode_step,
    linear_flops,
    prefill_flops,
    unit_cost,
)
from mortice.plan import afd, inputs
from mortice.plan.afd_formulas import ratio, read_lengths
from mortice.plan.afd_question import afd_question, judge
from mortice.plan.compare import compare_question, prompt_usd, read_plan, read_plans
from mortice.plan.deploy import Traffic, Workers, choose, deploy_question, deployment
from mortice.plan.design import Frame, designs
from mortice.plan.ep import ep_question, ep_rows
from mortice.plan.explain import explain_question
from mortice.plan.formulas import FORMULAS
from mortice.plan.kv import kv_question, reuse, smallest_layout
from mortice.plan.measured import read_measured
from mortice.plan.placement import formats_for, placement_table
from mortice.plan.roofline import roofline_question
from mortice.plan.supernode import on_boards, supernode_question
from mortice.plan.token_cost import token_cost
from mortice.specs.catalogue import hardware_names, load_hardware, load_model, load_rack
from mortice.specs.deployment import load_deployment
from mortice.specs.errors import NotFound, RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.slo import SLO

DATA = Path(__file__).parents[1] / "data"
H800, H20, H200, L40S = (load_hardware(name) for name in ("h800", "h20", "h200", "l40s"))
STEP3, DEEPSEEK = load_model("step-3"), load_model("deepseek-v3")


@pytest.mark.parametrize("layout", [(4, 2), (3, 2), (5, 3), (2, 6), (1, 4), (48, 16)])
def test_asymmetric_layouts_add_up(layout: tuple[int, int]) -> None:
    """A not divisible by F, A smaller than F: tokens sent equal tokens heard, whole packages are paid for."""
    p = afd.problem(STEP3, H800, H800, 4096)
    found = afd.candidate(p, *layout, 3, 8)
    num_a, num_f = layout
    assert found.packages == 8 * (num_a + num_f)
    assert found.batch == 3 * 8 * 8 * num_a
    # Bytes out of all A instances are the bytes into all F instances, at equal NICs.
    assert found.attention_link_s * num_a == pytest.approx(found.ffn_link_s * num_f)
    paid = found.usd_per_mtok * found.tokens_per_s / 1e6 * 3600
    assert paid == pytest.approx(8 * (num_a + num_f) * 2.00)


def test_far_more_experts_than_attention() -> None:
    """2A126F on single packages, the split of How-Far: it is priced, not refused."""
    b200 = load_hardware("b200")
    p = afd.problem(DEEPSEEK, b200, b200, 4096, gpus_attention=1, gpus_ffn=1)
    found = afd.candidate(p, 2, 126, 2, 4)
    assert found.packages == 128
    assert found.tpot_s > 0


def test_a_busy_attention_end_shows() -> None:
    p = afd.problem(STEP3, H800, H800, 4096)
    wide, narrow = afd.candidate(p, 3, 4, 3, 64), afd.candidate(p, 4, 3, 3, 64)
    assert wide.attention_link_s > wide.ffn_link_s
    assert narrow.attention_link_s < narrow.ffn_link_s


def test_selective_sending_lowers_the_link_only() -> None:
    broadcast = afd.candidate(afd.problem(DEEPSEEK, H800, H800, 4096), 4, 8, 3, 16)
    chosen = afd.candidate(afd.problem(DEEPSEEK, H800, H800, 4096, selective=True), 4, 8, 3, 16)
    assert chosen.ffn_link_s == pytest.approx(0.662 * broadcast.ffn_link_s, rel=0.002)
    assert chosen.stages[-1].attention_s == broadcast.stages[-1].attention_s


def test_a_slower_fabric_costs_what_it_loses() -> None:
    """One rail down or pause frames: half the bandwidth doubles the link's time."""
    p = afd.problem(STEP3, H800, H800, 4096)
    whole = afd.candidate(msgspec.structs.replace(p, net_efficiency=0.8), 2, 2, 3, 64)
    half = afd.candidate(msgspec.structs.replace(p, net_efficiency=0.4), 2, 2, 3, 64)
    assert half.ffn_link_s == pytest.approx(2 * whole.ffn_link_s)
    assert half.tpot_s >= whole.tpot_s


def test_a_hybrid_stack_has_a_period_for_each_kind_of_layer() -> None:
    p = afd.problem(load_model("minimax-m1"), H800, H800, 65536)
    found = afd.candidate(p, 4, 2, 3, 2)
    linear, full = found.stages
    assert full.attention_s != pytest.approx(linear.attention_s, rel=0.05)
    assert sum(found.layer_counts) == 80


def test_weights_that_do_not_fit_name_the_count_that_does() -> None:
    p = afd.problem(DEEPSEEK, H800, H800, 4096)
    with pytest.raises(RequestError, match="nearest feasible is 2"):
        afd.candidate(p, 1, 1, 3)
    with pytest.raises(RequestError, match="nearest feasible is 24"):
        afd.search(p, max_packages=16)


def test_kv_that_does_not_fit_names_the_context_that_does() -> None:
    p = afd.problem(STEP3, H800, H800, 4_000_000)
    with pytest.raises(RequestError, match=r"context: .*nearest feasible is [\d,]+ tokens"):
        afd.search(p)


def test_an_slo_that_nothing_meets_names_the_nearest() -> None:
    p = afd.problem(STEP3, H800, H800, 8192, tpot_s=0.002)
    with pytest.raises(RequestError, match=r"tpot: .* nearest feasible is \d+\.\d ms"):
        afd.search(p)


def test_a_dense_model_has_no_joint_to_cut() -> None:
    with pytest.raises(RequestError, match="no experts"):
        afd.problem(load_model("llama-3.1-8b"), H800, H800, 4096)


def test_afd_loses_on_eight_pcie_cards_with_a_sparse_model_and_the_verdict_says_so() -> None:
    """PCIe only, short context, very sparse experts: keeping both together is better, in plain words."""
    p = afd.problem(load_model("qwen3-30b-a3b"), L40S, L40S, 1024, gpus_attention=4, gpus_ffn=4)
    answer = afd_question(p, max_packages=8)
    assert answer.facts["wins"] is False
    assert "loses here" in answer.verdict or "Do not cut" in answer.verdict


def test_afd_wins_when_nothing_else_meets_the_slo() -> None:
    p = afd.problem(STEP3, H20, H800, 8192)
    verdict = judge(afd.search(p, max_packages=64)[0], [])
    assert verdict.wins
    assert verdict.ratio == math.inf


@pytest.mark.parametrize(
    ("trace", "num_attention", "per_gpu"),
    [("azure2023_conv_head.csv", 1, 256), ("mooncake_conversation_head.jsonl", 4, 48)],
)
def test_the_ratio_of_a_real_trace_is_what_a_simulation_of_it_gives(
    trace: str, num_attention: int, per_gpu: int
) -> None:
    """10 %, the authors' bound: the plan's own times, lengths of a trace, barrier over all attention packages, layouts
    that wait for attention."""
    lengths = read_lengths(DATA / trace)
    p = afd.problem(
        STEP3, H20, H800, round(lengths.mean), context_variance=lengths.variance, tpot_s=0.1, imbalance=1.0
    )
    plan = afd.candidate(p, num_attention, 2, 2, per_gpu)
    found = ratio(p, plan, lengths, seed=7)
    assert found.simulated == pytest.approx(found.tokens_per_s, rel=0.10)
    assert found.simulated != found.tokens_per_s
    assert 1.02 < found.barrier < 2
    assert 1 <= found.instances <= 48
    alike = ratio(msgspec.structs.replace(p, context_variance=0.0), plan, None)
    assert alike.barrier == 1
    assert alike.simulated is None
    # Those who wait for the longest sequences do less.
    assert found.tokens_per_s < alike.tokens_per_s
    assert found.optimal >= alike.optimal


def test_uneven_contexts_slow_attention_and_colocated_replicas_alike() -> None:
    p = afd.problem(STEP3, H20, H800, 8192)
    uneven = msgspec.structs.replace(p, context_variance=8192.0**2)
    even_s, uneven_s = (afd.candidate(each, 6, 2, 3, 16).stages[-1] for each in (p, uneven))
    assert uneven_s.attention_s > 1.2 * even_s.attention_s
    assert uneven_s.ffn_s == even_s.ffn_s
    tables = [placement_table(STEP3, [H800], 8192, context_variance=v) for v in (0.0, 8192.0**2)]
    slower = tables[1].tpot_s / tables[0].tpot_s
    assert (slower[tables[0].dp == 1] == 1).all()
    assert (slower[tables[0].dp > 1] > 1).all()


def test_a_missing_kernel_is_priced_as_slow_as_it_is() -> None:
    """TensorRT-LLM has no fast decode kernel for 64 query heads on one KV head of 256: 50 times, not the roofline."""
    context, batch = 32768, 8

    def step(framework: str) -> float:
        kernels = Kernels(H200, framework=framework)
        return float(decode_step(STEP3, kernels, Layout(tp=8), batch, context).attention_s)

    assert step("trtllm") > 20 * step("")
    assert step("sglang") == step("")


def test_prefill_and_decode_are_each_divided_by_their_own_packages() -> None:
    """Each phase by its own packages, and what the answer's prices make of the tokens is the cluster's bill."""
    answer, _ = deploy_question(_workers(packages_rate=None), 8, "llama", None)
    bill = 8 * H200.usd_per_second
    priced = [row for row in answer.facts["splits"] if row["usd_per_mtok_in"] is not None]
    assert {row["prefill"] for row in priced} == set(range(8))
    for row in priced:
        spent_in = row["usd_per_mtok_in"] * row["rate"] * 2048 / 1e6
        spent_out = row["usd_per_mtok_out"] * row["rate"] * 128 / 1e6
        assert spent_in + spent_out == pytest.approx(bill)
        if row["prefill"]:
            assert spent_in == pytest.approx(row["prefill"] * H200.usd_per_second)


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        (["h800=0"], "above 0"),
        (["h800=-1"], "above 0"),
        (["h800"], "NAME=USD"),
        (["x=1"], "not among"),
        (["h800=nan"], "above 0"),
    ],
)
def test_prices_that_make_no_sense(prices: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        inputs.hardware("h800", HONEST, inputs.parse_prices(prices))
    assert caught.value.param == "price"


def test_an_estimated_price_and_a_missing_one_are_said() -> None:
    said = inputs.device_assumptions([load_hardware("ascend-910b")])
    assert any(a.name == "ascend-910b.price" and "estimate" in a.value for a in said)
    with pytest.raises(RequestError, match="has no price"):
        inputs.require_prices([load_hardware("ascend-910c")])


@pytest.mark.parametrize(
    ("text", "tokens"), [("8192", 8192), ("8K", 8192), ("32k", 32768), ("128K", 131072), ("1M", 1_000_000)]
)
def test_contexts_are_read_as_written(text: str, tokens: int) -> None:
    assert inputs.context(text) == tokens


@pytest.mark.parametrize("text", ["", "0", "-5", "8X", "1e99", "nan"])
def test_contexts_that_make_no_sense(text: str) -> None:
    with pytest.raises(RequestError, match="context"):
        inputs.context(text)


def test_placement_table_of_every_layout_in_under_five_seconds_at_most() -> None:
    """More than 100,000 candidates; the seconds are measured in benchmarks, here only that each is priced or refused."""
    table = placement_table(DEEPSEEK, [load_hardware(n) for n in hardware_names()], 8192)
    assert len(table) > 100_000
    assert table.tpot_s.shape == table.usd.shape == table.fits.shape
    best = table.best(0.05)[0]
    assert best.tpot_s <= 0.05
    assert best.usd_per_mtok == pytest.approx(table.usd[table.fits & (table.tpot_s <= 0.05)].min())
    with pytest.raises(RequestError, match=r"tpot: nothing meets 0\.01 ms; nearest feasible is"):
        table.best(1e-5)


def test_expert_groups_are_uneven_by_their_own_size() -> None:
    """Wider groups and smaller batches pay more for uneven routing; a given figure is taken for all."""
    uneven = placement_table(DEEPSEEK, [H800], 8192)
    even = placement_table(DEEPSEEK, [H800], 8192, imbalance=1.0)
    loss = uneven.tpot_s / even.tpot_s
    large = (uneven.tp == 1) & (uneven.pp == 1) & (uneven.batch == 1024 * uneven.dp)

    def of(ep: int) -> float:
        return float(loss[large & (uneven.ep == ep) & (uneven.dp == ep)][0])

    assert of(1) == 1
    assert 1 < of(8) < of(64) < 1.2
    assert (loss >= 1 - 1e-9).all()
    named = next(a for a in even.assumed if a.name == "expert imbalance")
    assert named.value == "1"


def test_a_model_too_large_for_any_placement() -> None:
    table = placement_table(load_model("kimi-k2"), [load_hardware("l4")], 8192, max_packages=8)
    with pytest.raises(RequestError, match="no placement holds it"):
        table.best(0.05)


def test_ep_within_a_domain_and_across() -> None:
    rows = {row["ep"]: row for row in ep_rows(DEEPSEEK, H800, 128)}
    assert rows[8]["scale_out_bytes"] == 0
    assert 0 < rows[32]["scale_out_bytes"] < rows[32]["naive_scale_out_bytes"]
    assert rows[256]["imbalance"] > rows[8]["imbalance"] > 1
    assert "72" in ep_question(DEEPSEEK, load_hardware("gb200")).notes[0]
    with pytest.raises(RequestError, match="no experts"):
        ep_rows(load_model("llama-3.1-8b"), H800, 128)
    with pytest.raises(RequestError, match="at least 1"):
        ep_rows(DEEPSEEK, H800, 0)


def test_kv_capacity_transfer_and_reuse() -> None:
    answer = kv_question(load_model("llama-3.1-8b"), [H200, L40S], 8192, kv="bf16")
    assert answer.facts["bytes_per_token"]["bf16"] == 131_072
    over = {(m["hardware"], m["tier"]): m for m in answer.facts["transfers"]}
    assert over["h200", "scale_out"]["transfer_s"] > over["h200", "node"]["transfer_s"]
    formats = formats_for(H200, "bf16", "bf16")
    layout = smallest_layout(load_model("llama-3.1-8b"), H200, 8192, formats)
    short, long = (reuse(load_model("llama-3.1-8b"), H200, layout, n, formats) for n in (1024, 65536))
    # Long prefixes are dearer to compute, so a slower link suffices to fetch them.
    assert long.break_even_bytes_per_s < short.break_even_bytes_per_s
    with pytest.raises(RequestError, match="nearest feasible is about"):
        kv_question(load_model("llama-3.1-405b"), [H200], 10_000_000)


def test_mooncakes_reuse_thresholds_are_of_the_right_size() -> None:
    """70B, 8,192-token prefix on eight cards: 6 GB/s on A800 and 19 GB/s on H800 in the paper, which counts peaks; ours
    run at kernels' efficiency and pay the all-reduces (H800 has half the NVLink), so they lie below, within four."""
    model = load_model("llama-3.1-70b")
    for name, published in (("a800", 6e9), ("h800", 19e9)):
        device = load_hardware(name)
        found = reuse(model, device, Layout(tp=8), 8192, formats_for(device, "bf16", "bf16"))
        assert published / 4 < found.break_even_bytes_per_s < published * 1.05


def test_a_rack_is_worth_more_than_its_boards() -> None:
    answer = supernode_question(DEEPSEEK, [load_rack("gb200-nvl72")])
    whole, boards = answer.facts["serving"]
    assert whole["ep_tgs"] > 1.1 * boards["ep_tgs"]
    assert on_boards(load_hardware("gb200")).link("node").span == 8
    # Prefill by context parallelism hides its ring on either: the domain buys nothing there.
    a, b = answer.facts["prefill"]
    assert a["seconds"] == pytest.approx(b["seconds"], rel=0.02)


def test_the_design_search_finds_step3s_direction() -> None:
    """H20 and H800: factorised attention whose intensity lies near H20's ridge, experts as dense as the network asks."""
    found = designs(Frame(), [H20, H800], [H800])
    best = found[0]
    assert best.attention.startswith("MFA")
    assert best.attention_hardware == "h20"
    assert best.fits
    assert 0.5 < best.ridge_share < 2
    with pytest.raises(RequestError, match="nearest rank"):
        designs(Frame(min_rank=500_000), [H20], [H800])


def test_quantised_kv_doubles_intensity() -> None:
    answer = roofline_question([STEP3, DEEPSEEK], [H800, H20], 8192, HONEST)
    for row in answer.facts["rows"]:
        assert row["intensity_fp8"] == pytest.approx(2 * row["intensity_bf16"])
    assert {r["bound"] for r in answer.facts["rows"] if r["hardware"] == "h20"} == {"arithmetic"}


def test_plans_side_by_side() -> None:
    answer = compare_question(STEP3, read_plans(["h800", "h20/h800:6A2F"]), 8192)
    assert [p["plan"] for p in answer.facts["plans"]] == ["h800", "h20/h800:6A2F"]
    assert read_plan("h20/h800:6A2F") == ("h20", "h800", 6, 2)
    assert all(0 < p["prompt_usd_per_mtok"] < 1 for p in answer.facts["plans"])
    # Experts over replicas, not tensor parallelism across nodes: far below 0.9 USD of 16 packages that share each prompt.
    assert prompt_usd(load_model("kimi-k2"), H200) < 0.1
    assert prompt_usd(load_model("kimi-k2"), load_hardware("l4")) is None
    assert read_plan("h800:3A2F") == ("h800", "h800", 3, 2)
    for wrong in ("h800:6A", "h800:0A2F", "a/b/c:1A", ""):
        with pytest.raises(RequestError):
            read_plans(["h800", wrong])
    with pytest.raises(RequestError, match="two or more"):
        read_plans(["h800"])


def test_an_honest_token_costs_what_kernels_take() -> None:
    """Above the roofline, phase by phase: Step-3's attention share of 0.69 and products at 0.70 of peak."""
    published, honest = (token_cost(STEP3, H800, 8192, rule) for rule in (PUBLISHED, HONEST))
    assert honest.ffn_usd_per_mtok == pytest.approx(published.ffn_usd_per_mtok / 0.70, rel=0.05)
    assert honest.attention_usd_per_mtok > published.attention_usd_per_mtok
    assert honest.prefill_usd_per_mtok < honest.training_usd_per_mtok / 3
    flops = prefill_flops(STEP3, 8192, 0.0, PUBLISHED)
    assert published.prefill_usd_per_mtok == pytest.approx(
        1e6 * (flops["gemm"] + flops["attention"]) / 8192 * 2 / 3600 / 1979e12
    )


def test_attention_in_8_bits_is_what_h20_wants() -> None:
    """Arithmetic binds MFA on H20: 8 bits halve its core there, nothing on a card that waits for memory, nothing on a
    card without such arithmetic."""

    def price(device: HardwareSpec, dtype: str) -> float:
        return token_cost(STEP3, device, 32768, HONEST, attention=dtype).attention_usd_per_mtok

    assert price(H20, "fp8") < 0.6 * price(H20, "bf16")
    assert price(H800, "fp8") > 0.9 * price(H800, "bf16")
    a800 = load_hardware("a800")
    assert price(a800, "fp8") == price(a800, "bf16")
    p = afd.problem(STEP3, H20, H800, 32768, attention_dtype="fp8")
    wide = afd.problem(STEP3, H20, H800, 32768)
    times = [afd.layer_stages(each, 4, 2, 16).attention_s for each in (p, wide)]
    assert times[0] < 0.65 * times[1]


def test_drafted_rows_fill_the_tile_before_they_cost() -> None:
    """Qwen3-235B has 16 query rows a KV head: three drafts that are all taken quarter the attention price, a fourth
    opens a second tile."""
    model = load_model("qwen3-235b-a22b")
    tiled = msgspec.structs.replace(PUBLISHED, pad_tiles=True)

    def core(drafted: int) -> float:
        drafts = Speculation(drafted=drafted, accepted=drafted + 1.0)
        cost = token_cost(model, H20, 32768, tiled, drafts=drafts)
        return cost.attention_usd_per_mtok - 1e6 * linear_flops(model, tiled) * unit_cost(H20).flop

    assert core(3) == pytest.approx(core(0) / 4)
    assert core(4) == pytest.approx(2 * core(0) / 5)


def test_measured_kernels_are_used_and_named() -> None:
    """The profile that ships for the H200 prices it; a note says where only one side of a comparison is measured."""
    measured = read_measured(None, [H200, H20])
    priced = kv_question(load_model("llama-3.1-8b"), [H200, H20], 8192, kv="bf16", measured=measured)
    plain = kv_question(load_model("llama-3.1-8b"), [H200, H20], 8192, kv="bf16")
    times = [[r["compute_s"] for r in answer.facts["reuse"]] for answer in (priced, plain)]
    assert times[0][0] != times[1][0]
    assert times[0][1] == times[1][1]
    assert any(a.value == "measured" for a in priced.assumed)
    assert not any(a.value == "measured" for a in plain.assumed)
    assert "h200 is priced with measured kernels, h20 with modelled" in priced.notes[0]
    assert read_measured(["none"], [H200]).kernels(H200).calibration is None
    assert measured.kernels(H200, shares=afd.fused_kernels(H200)).calibration is None


def test_a_profile_of_other_hardware_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    row = {"operator": "gemm", "variant": "bf16", "features": {"m": 1, "n": 2, "k": 3}, "seconds": 1e-5}
    head = {"schema": "mortice.profile/1", "device": "x", "software": "y", "date": "2026-01-01"}
    path.write_text(json.dumps(head | {"hardware": "h100", "rows": [row]}))
    for sources, named in (([str(path)], "none of the hardware"), (["none", str(path)], "stands alone"),
                           (["aiconfigurator:vlm"], "trtllm"), (["/no/such/file"], "cannot read")):  # fmt: skip
        with pytest.raises(RequestError, match=named):
            read_measured(sources, [H200])


def _workers(
    packages_rate: float | None, prompt_len: int = 2048, output_len: int = 128, **limits: float
) -> Workers:
    slo = SLO(**({"ttft_ms": 500.0, "tpot_ms": 30.0} | limits))
    traffic = Traffic(prompt_len=prompt_len, output_len=output_len, rate=packages_rate, slo=slo)
    return Workers(load_model("llama-3.1-8b"), H200, traffic, formats_for(H200, "bf16", "bf16"))


def test_deploy_cuts_where_prompts_are_long_and_tpot_is_tight(tmp_path) -> None:
    workers = _workers(None, prompt_len=8192, output_len=64, ttft_ms=1000.0, tpot_ms=15.0)
    answer, document = deploy_question(workers, 8, "llama", None)
    assert answer.facts["disaggregate"] is True
    assert answer.verdict.startswith("Disaggregate")
    path = tmp_path / "deployment.yaml"
    path.write_text(document)
    made = load_deployment(path)
    assert (made.prefill, made.decode) == (answer.facts["best"]["prefill"], answer.facts["best"]["decode"])
    assert made.prefill >= 1


def test_deploy_says_when_not_to_disaggregate() -> None:
    workers = _workers(None, prompt_len=64, output_len=512, tpot_ms=200.0)
    answer, document = deploy_question(workers, 2, "llama", None)
    assert answer.facts["disaggregate"] is False
    assert answer.verdict.startswith("Do not disaggregate")
    assert "\nprefill: 0\n" in document


def test_deploy_takes_the_fewest_packages_for_a_rate() -> None:
    workers = _workers(40.0)
    found, count = choose(workers, None)
    assert found[0].goodput >= 40
    fewer = choose(_workers(None), count - 1)[0][0].goodput if count > 1 else 0.0
    assert fewer < 40
    assert deployment(workers, found[0], "m").limits.token_budget >= 512


@pytest.mark.parametrize(
    ("limits", "packages", "rate", "named"),
    [
        ({"tpot_ms": 0.5}, 4, None, "tpot"),
        ({"ttft_ms": 1.0}, 4, None, "ttft"),
        ({}, 2, 1e4, "rate"),
        ({}, None, 1e6, "rate"),
        ({}, None, None, "packages"),
        ({}, 100, None, "packages"),
    ],
)
def test_deploy_names_what_binds(
    limits: dict[str, float], packages: int | None, rate: float | None, named: str
) -> None:
    with pytest.raises(RequestError, match=named) as caught:
        choose(_workers(rate, **limits), packages)
    assert caught.value.param == named


def test_every_formula_explains_itself_and_its_code_exists() -> None:
    import importlib

    for entry in FORMULAS:
        answer = explain_question(entry.name)
        assert answer.facts["formula"] == entry.formula
        module, _, name = entry.code.partition(":")
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part) if part else found
        assert found is not None
    with pytest.raises(NotFound, match="nearest are"):
        explain_question("afd.perod")
    with pytest.raises(RequestError, match="worked numbers"):
        explain_question("afd.period", STEP3, H20, 8192, HONEST)
    worked = explain_question("moe.density", STEP3, H800, 8192, HONEST).facts["worked"]
    assert any(row["quantity"] == "S_min" for row in worked)


def test_the_planner_is_light() -> None:
    """Importing mortice.plan needs neither torch nor scipy nor matplotlib."""
    script = (
        "import sys, mortice.plan, mortice.plan.report, mortice.plan.deploy;"
        "print([m for m in ('torch', 'scipy', 'matplotlib', 'jinja2', 'transformers') if m in sys.modules])"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
    assert time.monotonic() > started
