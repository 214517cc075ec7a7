"""The ways to divide four workers, live, on traffic that changes its kind halfway; beside each, the simulator's answer.

    .venv/bin/python benchmarks/pd/live_policies.py [--seconds 60] [--out build/pd-live.json]

Real worker processes, hand-overs, flips and decisions; the model is the fake one whose steps last as long as an
accelerator's would (models/fake.py), so that four workers stand beside each other on two cores. Requests are Azure's:
conversation for the first half (long answers: decode works), code for the second (long prompts: prefill works), Poisson
arrivals, requests beyond 4,000 tokens left out. Every way meets the same requests. Prints one JSON object.
"""

import argparse
import asyncio
import json
import random
import tempfile
from pathlib import Path

import traffic
from live_against_sim import Answers, Rows, attainment, run_live

from mortice.sched.journal import replay
from mortice.sim.cluster import Cluster
from mortice.sim.deployed import plan_of
from mortice.sim.request import SimRequest
from mortice.sim.summary import percentiles
from mortice.specs.cluster import ClusterSpec
from mortice.specs.deployment import Deployment, EngineLimits
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes

SLO_ = SLO(ttft_ms=2000.0, tpot_ms=80.0)
LONGEST = 4000
TIMES = WorkerTimes(
    prefill_base_s=0.03,
    prefill_token_s=2e-4,
    prefill_square_s=5e-9,
    decode_base_s=0.04,
    decode_sequence_s=4e-4,
    decode_context_s=2e-7,
    kv_tokens=65_536,
    kv_token_bytes=64.0,
    source="an accelerator that does not exist",
)
WAYS: dict[str, tuple[int, int, str]] = {  # prefill workers, the others, policy
    "static 1P3D": (1, 3, "static"),
    "static 2P2D": (2, 2, "static"),
    "static 3P1D": (3, 1, "static"),
    "together": (0, 4, "static"),
    "dopd": (2, 2, "dopd"),
    "mortice": (2, 2, "mortice"),
}


def rows_of(seconds: float, rates: tuple[float, float], seed: int) -> Rows:
    rng = random.Random(seed)
    rows, at_s = [], 0.0
    kinds = [
        [r for r in traffic.azure(name).requests if r.prompt_len + r.output_len <= LONGEST]
        for name in ("conv", "code")
    ]
    while True:
        phase = int(at_s >= seconds / 2)
        at_s += rng.expovariate(rates[phase])
        if at_s >= seconds:
            return rows
        one = rng.choice(kinds[phase])
        rows.append((at_s, one.prompt_len, one.output_len))


def deployment_of(prefill: int, decode: int, policy: str) -> Deployment:
    document = Deployment(
        model="fake:timed",
        prefill=prefill,
        decode=decode,
        threads=1,
        limits=EngineLimits(kv_bytes=65_536 * 64, token_budget=1024, max_num_seqs=128, max_context=4096),
        cluster=ClusterSpec(
            policy=policy,  # type: ignore[arg-type]
            slo=SLO_,
            prefill_times=TIMES,
            decode_times=TIMES,
            period_s=2.0,
            patience=2,
            dwell_s=4.0,
            convertible=policy == "mortice",
        ),
    )
    document.check()
    return document


def figures(answers: Answers) -> dict:
    assert SLO_.ttft_ms is not None
    assert SLO_.tpot_ms is not None
    return {
        "ttft_ms": percentiles([first * 1e3 for first, _ in answers]),
        "tpot_ms": percentiles([each * 1e3 for _, each in answers if each is not None]),
        "attainment": attainment(answers, SLO_.ttft_ms / 1e3, SLO_.tpot_ms / 1e3) / 100,
    }


def simulated(document: Deployment, rows: Rows) -> dict:
    requests = [SimRequest(i, at_s, prompt, output, []) for i, (at_s, prompt, output) in enumerate(rows)]
    Cluster(plan_of(document), requests).run()
    return figures([(r.ttft_s, r.tpot_s) for r in requests])


def measured(document: Deployment, rows: Rows) -> tuple[dict, dict]:
    """Latencies, and what became of the decision log."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "decisions.jsonl"
        answers, _ = asyncio.run(run_live(document, document.model, rows, log))
        again = replay(log)
        flips = log.read_text().count('"Flip"')
    return figures(answers), {
        "flips": flips,
        "answers": again.num_answers,
        "replay_differences": again.num_differences,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rates", type=float, nargs=2, default=(4.0, 5.0), help="requests/s of each half")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--simulated-only", action="store_true", help="Find rates that tell the ways apart.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = rows_of(options.seconds, tuple(options.rates), options.seed)
    found = {}
    for way in options.ways:
        document = deployment_of(*WAYS[way])
        found[way] = {"simulated": simulated(document, rows)}
        if not options.simulated_only:
            found[way]["live"], found[way]["log"] = measured(document, rows)
        print(json.dumps({way: found[way]}), flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(
            json.dumps({"options": vars(options) | {"out": str(options.out)}, "ways": found}, indent=1)
        )


if __name__ == "__main__":
    main()
