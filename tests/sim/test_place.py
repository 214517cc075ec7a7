"""Placement search: what it chooses, what it writes, what it refuses. Small draws: the machinery, not the figures."""

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from mortice.cli import app
from mortice.cost import Formats
from mortice.plan.place import Search
from mortice.plan.place_candidates import Question
from mortice.sim.deployed import plan_of
from mortice.specs.catalogue import load_hardware, load_model
from mortice.specs.deployment import load_deployment
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.workload import TraceRequest

TRACE = Path(__file__).parents[1] / "data" / "azure2023_conv_head.csv"
LASTING = 1500  # requests: fewer are answered within the TTFT even if all come at once, and show no limit
LONG_IN = [TraceRequest(0.0, n, 40) for n in (2000, 3000, 4000, 5000)]


def question(gpus: int, slo: SLO, model: str = "llama-3.1-8b") -> Question:
    return Question(
        model=load_model(model), served=model, hardware=load_hardware("h100"), hardware_name="h100", gpus=gpus, slo=slo,
        formats=Formats(weights="fp8"), longest=6000,
    )  # fmt: skip


def search(
    gpus: int,
    slo: SLO,
    rows: list[TraceRequest],
    model: str = "llama-3.1-8b",
    processes: int = 1,
    num_requests: int = 120,
) -> Search:
    return Search(question(gpus, slo, model), rows, num_requests=num_requests, processes=processes)


def test_a_tight_tpot_cuts_and_a_loose_one_does_not() -> None:
    tight = search(2, SLO(ttft_ms=2000, tpot_ms=8), LONG_IN).run("mortice")
    assert tight.best.prefill is not None
    loose = search(2, SLO(ttft_ms=800, tpot_ms=200), [TraceRequest(0.0, 2000, 20)]).run("mortice")
    assert loose.together is not None
    assert loose.together.goodput > 0
    assert loose.best.prefill is None or loose.best.goodput < 1.3 * loose.together.goodput


def test_a_sample_that_is_too_short_to_queue_is_made_longer() -> None:
    """All of 30 prompts are answered within 3 s if they come at once: of those the search would answer any rate at all."""
    short = search(2, SLO(ttft_ms=3000, tpot_ms=20), LONG_IN, num_requests=30)
    found = short.run("mortice")
    assert len(short.samples[0].gaps) > 100
    assert all(c.goodput < 2 * c.expected for c in found.candidates)


def test_the_search_is_the_same_on_one_process_and_on_two() -> None:
    slo = SLO(ttft_ms=2000, tpot_ms=8)
    one, two = (search(2, slo, LONG_IN, processes=n).run("joint") for n in (1, 2))
    assert one == two


@pytest.mark.slow
def test_devices_are_never_more_than_given() -> None:
    for algorithm in ("mortice", "high", "low", "joint"):
        found = search(2, SLO(ttft_ms=2000, tpot_ms=20), LONG_IN).run(algorithm)
        assert all(c.gpus <= 2 for c in found.candidates), algorithm
        assert found.best.goodput > 0


@pytest.mark.slow
def test_without_the_bound_of_a_node_there_is_more_to_choose_from() -> None:
    """C5, of the two joint searches; both simulated alike, 20 % for the draw and for closed forms that choose what is
    simulated. Algorithm 1 chooses its phases one by one and rounds to whole instances, so that on few devices it may well
    lose."""
    slo = SLO(ttft_ms=2000, tpot_ms=20)
    joint, low = (search(8, slo, LONG_IN, num_requests=LASTING).run(a).best for a in ("joint", "low"))
    assert joint.per_gpu >= 0.8 * low.per_gpu


@pytest.mark.slow
def test_replication_follows_the_rate() -> None:
    slo = SLO(ttft_ms=2000, tpot_ms=20)
    once = search(16, slo, LONG_IN, num_requests=LASTING).run("low", rate=5.0).best
    rate = 1.5 * once.goodput
    more = search(16, slo, LONG_IN, num_requests=2 * LASTING).run("low", rate=rate).best
    assert more.num_prefill > once.num_prefill
    assert more.goodput >= 0.8 * rate


def test_an_slo_beyond_physics_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="no placement meets it"):
        search(2, SLO(ttft_ms=0.1, tpot_ms=0.01), LONG_IN).run("mortice")


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RequestError, match="does not fit"):
        search(1, SLO(ttft_ms=500, tpot_ms=50), LONG_IN, model="llama-3.1-405b").run("mortice")


def test_the_document_is_read_back_by_sim(tmp_path: Path) -> None:
    out, plot = tmp_path / "P.yaml", tmp_path / "P.png"
    command = [
        "plan", "place", "--model", "llama-3.1-8b", "--hardware", "h100", "--gpus", "2", "--trace", TRACE,
        "--slo-ttft-ms", "500", "--slo-tpot-ms", "30", "--requests", "100", "--processes", "1", "--out", out,
        "--plot", plot, "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(c) for c in command], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    document = load_deployment(out)
    assert msgspec.to_builtins(document) == answer["deployment"]
    plan = plan_of(document)
    assert plan.prefill + plan.decode + plan.mixed == answer["best"]["prefill"] + answer["best"]["decode"]
    assert plot.stat().st_size > 10_000
    ran = CliRunner().invoke(
        app, ["sim", "run", "--deployment", str(out), "--trace", str(TRACE), "--policy", "mortice", "--json"]
    )
    assert json.loads(ran.stdout)["finished"] == 40


@pytest.mark.parametrize(
    ("options", "field"), [(["--gpus", "0"], "gpus"), (["--slo-ttft-ms", "0"], "ttft"), (["--rate", "-1"], "rate"),
                           (["--hardware", "h900"], "h900"), (["--model", "llama-9"], "llama-9")],
)  # fmt: skip
def test_options_that_make_no_sense(options: list[str], field: str) -> None:
    base = ["plan", "place", "--model", "llama-3.1-8b", "--trace", str(TRACE)]
    with pytest.raises(RequestError) as caught:
        CliRunner().invoke(app, [*base, *options], catch_exceptions=False)
    assert field in caught.value.message
