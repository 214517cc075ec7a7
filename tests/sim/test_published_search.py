"""What DistServe's evaluation found, asked of its published simulator with the published coefficients: which placement wins,
and by how much the division carries more (arXiv 2401.09670 v3, sections 6.2 and 6.4; figures of the ranking re-run from its
code on Azure conv)."""

from pathlib import Path

import numpy as np
import pytest

from mortice.sim.distserve import Parallel, Placed, arrivals_at, published_rows, simulate
from mortice.specs.errors import RequestError
from mortice.specs.workload import TraceRequest, read_trace

SHARED = Path(__file__).parents[3] / "shared" / "traces" / "azure2023_conv.csv.gz"
Rows = list[TraceRequest]
Slo = tuple[float, float]  # TTFT, TPOT; ms


def placed(model: str, prefill: tuple[int, int], decode: tuple[int, int] | None) -> Placed:
    return Placed(model=model, prefill=Parallel(*prefill), decode=Parallel(*decode) if decode else None)


def per_gpu(what: Placed, rows: Rows, slo: Slo, *, joint: bool = True, target: float = 0.9) -> float:
    """Largest rate a device, bisected to 0.02 requests/s. `joint`: both limits by the same requests, else each by its share
    (as the published search asks); a layout that is not in the memory table carries nothing."""
    low, high = 0.0, 5.0
    while high - low > 0.02:
        middle = (low + high) / 2
        try:
            first, rest, both = simulate(what, rows, arrivals_at(rows, middle * what.gpus)).attainment(*slo)
        except RequestError:
            return 0.0
        low, high = (middle, high) if (both if joint else min(first, rest)) >= target else (low, middle)
    return low


# -- the ranking on four devices --------------------------------------------------------------------------------------

RANKING = {  # (prefill TP, PP), (decode TP, PP) or None: requests a second and device; joint 90 % at 250 and 100 ms
    ((1, 1), (1, 1)): 1.063, ((1, 1), (2, 1)): 0.703, ((1, 1), (1, 2)): 0.703, ((2, 1), (1, 1)): 0.750,
    ((1, 2), (1, 1)): 0.750, ((2, 1), (2, 1)): 0.922, ((1, 2), (2, 1)): 0.922, ((2, 1), (1, 2)): 1.109,
    ((1, 2), (1, 2)): 1.109, ((1, 1), None): 0.688, ((2, 1), None): 0.859, ((1, 2), None): 0.797,
    ((4, 1), None): 0.672, ((2, 2), None): 0.891,
}  # fmt: skip


@pytest.mark.slow
def test_the_ranking_on_four_devices() -> None:
    """Steps of 0.02 on each side, hence 0.03. Colocated 2,1 crosses 90 % three times between 0.83 and 0.89 (its share falls,
    rises and falls again), so a bisection ends where its steps fall: the published 0.859 must carry, 0.90 must not."""
    if not SHARED.exists():
        pytest.skip("the shared traces do not lie beside this checkout")
    rows = published_rows(read_trace(SHARED).requests, 2048)[:500]
    found = {key: per_gpu(placed("opt-13b", *key), rows, (250, 100)) for key in RANKING}
    flat = ((2, 1), None)
    met, missed = (
        simulate(placed("opt-13b", *flat), rows, arrivals_at(rows, 2 * rate)).attainment(250, 100)[2]
        for rate in (RANKING[flat], 0.9)
    )
    assert missed < 0.9 <= met
    for key, rate in RANKING.items():
        if key != flat:
            assert found[key] == pytest.approx(rate, abs=0.03), key
    apart = max((k for k in found if k[1]), key=lambda k: found[k])
    alone = max((k for k in found if not k[1]), key=lambda k: found[k])
    assert apart in (((2, 1), (1, 2)), ((1, 2), (1, 2)))
    assert alone == ((2, 2), None)
    assert found[apart] / found[alone] == pytest.approx(1.25, abs=0.06)
    assert found[apart] / found[(1, 1), None] == pytest.approx(1.61, abs=0.08)


# -- C4: which placement wins -------------------------------------------------------------------------------------------


def shared_gpt(count: int) -> Rows:
    """Stand-in for ShareGPT, which is not at hand: its mean lengths (755.5 in, 200.3 out), log-normal with a spread of 0.8,
    Poisson arrivals."""
    rng = np.random.default_rng(0)
    at = np.cumsum(rng.exponential(1.0, count))
    prompt, output = (
        np.clip(mean * np.exp(0.8 * rng.normal(size=count) - 0.32), 4, most).round().astype(int)
        for mean, most in ((755.5, 1700), (200.3, 340))
    )
    rows = zip(at.tolist(), prompt.tolist(), output.tolist(), strict=True)
    return [TraceRequest(*row) for row in rows]


def search(model: str, layouts: list[tuple[int, int]], most: int, slo: Slo) -> list[tuple[float, Placed]]:
    """Divisions of at most `most` devices, best first; of equal ones that with fewer devices."""
    rows = shared_gpt(500)
    pairs = [placed(model, p, d) for p in layouts for d in layouts]
    pairs = [pair for pair in pairs if pair.gpus <= most]
    return sorted(
        ((per_gpu(pair, rows, slo, joint=False), pair) for pair in pairs), key=lambda x: (-x[0], x[1].gpus)
    )


def test_the_published_placement_of_13b_is_found() -> None:
    """C4: prefill 2,1 and decode 1,1 on a node of four at 200 and 100 ms, as the released example prints (1.56 there, with
    other lengths and 300 requests)."""
    found = search("opt-13b", [(1, 1), (2, 1), (1, 2)], 4, (200, 100))
    best = found[0][1]
    assert (best.prefill, best.decode) == (Parallel(2), Parallel(1))
    assert found[0][0] > 1.1 * found[1][0]


@pytest.mark.slow
@pytest.mark.parametrize("slo", [(2500.0, 150.0), (400.0, 100.0)])
def test_prefill_of_66b_wants_more_tensor_parallelism_than_decode(slo: Slo) -> None:
    """C4: 4,1 and 2,2 at the paper's limits. At those of its first version 4,1 with less for decode: same kind,
    other counts, for the lengths are not ShareGPT's own."""
    found = search("opt-66b", [(2, 1), (3, 1), (4, 1), (2, 2)], 8, slo)
    level = [pair for rate, pair in found if rate >= found[0][0] - 0.02]
    assert any(p.prefill == Parallel(4) and p.decode is not None and p.decode.tp < 4 for p in level)
    if slo == (2500.0, 150.0):
        assert placed("opt-66b", (4, 1), (2, 2)) in level


# -- C2: what it is worth -----------------------------------------------------------------------------------------------

DIVIDED_66B, TOGETHER_66B = placed("opt-66b", (4, 1), (2, 2)), placed("opt-66b", (4, 1), None)
DIVIDED_13B, TOGETHER_13B = placed("opt-13b", (2, 1), (1, 1)), placed("opt-13b", (1, 1), None)
CHAT, CODE, SUMMARY = (755, 200), (171, 98), (1738, 91)  # ShareGPT, HumanEval, LongBench: mean lengths


def alike(lengths: tuple[int, int]) -> Rows:
    """1,000 requests of one length, Poisson arrivals."""
    at = np.cumsum(np.random.default_rng(0).exponential(1.0, 1000))
    return [TraceRequest(t, *lengths) for t in at.tolist()]


ONE_LENGTH = pytest.mark.xfail(
    strict=True,
    reason="1.0 (13B) and 1.4 times (66B), not 1.5: where all prompts are alike the colocated engine's TTFT has no tail "
    "until it saturates, and the published gain at these loose limits is that tail's",
)


@pytest.mark.parametrize(
    ("divided", "together", "lengths", "slo"),
    [
        pytest.param(DIVIDED_66B, TOGETHER_66B, CHAT, (400, 100), id="chatbot 66B, limits of v1"),
        pytest.param(DIVIDED_66B, TOGETHER_66B, CODE, (125, 200), id="code 66B"),
        pytest.param(DIVIDED_66B, TOGETHER_66B, SUMMARY, (15_000, 150), id="summarisation 66B"),
        pytest.param(
            DIVIDED_66B,
            TOGETHER_66B,
            CHAT,
            (2500, 150),
            id="chatbot 66B",
            marks=[ONE_LENGTH, pytest.mark.slow],
        ),
        pytest.param(
            DIVIDED_13B,
            TOGETHER_13B,
            CHAT,
            (250, 100),
            id="chatbot 13B",
            marks=[ONE_LENGTH, pytest.mark.slow],
        ),
    ],
)
def test_the_division_carries_more_than_1_5_times_the_requests(
    divided: Placed, together: Placed, lengths: tuple[int, int], slo: Slo
) -> None:
    """C2: 2.0 to 4.6 times for a chatbot, 5.7 for code, 4.3 for summaries in the paper; 2.2, 5.4 and 2.2 here."""
    rows = alike(lengths)
    assert per_gpu(divided, rows, slo) > 1.5 * per_gpu(together, rows, slo)


def test_summaries_gain_most_in_how_tight_the_limits_may_be() -> None:
    """C2, at the rates of the paper's own sweeps: the smallest multiple of both limits that 90 % still meet, together over
    divided. 1.2, 1.4 and 65 here; 12.6 for summaries there, where measured queues did not grow for 1,000 requests."""
    gain = {}
    for name, lengths, slo, rate in (
        ("chat", CHAT, (2500, 150), 0.25), ("code", CODE, (125, 200), 0.875), ("summary", SUMMARY, (15_000, 150), 0.375),
    ):  # fmt: skip
        rows = alike(lengths)
        scales = []
        for what in (TOGETHER_66B, DIVIDED_66B):
            found = simulate(what, rows, arrivals_at(rows, rate * what.gpus))
            worst = np.maximum(found.ttft_ms / slo[0], found.tpot_ms / slo[1])
            scales.append(np.quantile(worst, 0.9))
        gain[name] = scales[0] / scales[1]
    assert gain["summary"] > 4
    assert gain["summary"] > gain["code"] > 1
    assert gain["summary"] > gain["chat"] > 1
