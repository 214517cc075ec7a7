"""The simulator against the live cluster: the same requests, the same deployment, step times and their spread fitted to the
run's own ledger.

    .venv/bin/python benchmarks/pd/live_against_sim.py --model smollm2 --prefill 1 --decode 1 --rate 0.5 --num 100

Runs the cluster without HTTP, so that both sides measure from arrival to token. Prints one JSON object: latencies and
attainment of both, and how far the simulator is off, with every step as long as its counts say and with the measured spread
(several seeds, their answers together); and whether the live decision log replays to the same decisions.
"""

import argparse
import asyncio
import glob
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from mortice.cluster.live import LiveCluster
from mortice.cost.step_fit import Row, fit_spread, fit_steps, ledger_rows
from mortice.models import store
from mortice.sched.journal import replay
from mortice.sched.setup import setup_of
from mortice.serve.start import threads_per_worker
from mortice.sim.cluster import Body, Cluster, Physics, Plan
from mortice.sim.request import SimRequest
from mortice.sim.summary import percentiles
from mortice.specs.cluster import ClusterSpec
from mortice.specs.deployment import Deployment, EngineLimits
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams
from mortice.specs.slo import SLO
from mortice.specs.step_spread import StepSpread
from mortice.specs.worker_times import WorkerTimes
from mortice.specs.workload import read_trace

SEEDS = 5
Rows = list[tuple[float, int, int]]  # arrival s, prompt tokens, output tokens


def rows_of(options: argparse.Namespace) -> Rows:
    """A cut of a trace with its gaps scaled to the rate, or Poisson arrivals with log-normal lengths."""
    if options.trace:
        found = [
            r for r in read_trace(options.trace).requests if r.prompt_len + r.output_len <= options.longest
        ]
        cut = found[: options.num]
        stretch = (len(cut) - 1) / max(1e-9, cut[-1].at_s - cut[0].at_s) / options.rate
        return [((r.at_s - cut[0].at_s) * stretch, r.prompt_len, r.output_len) for r in cut]
    rng = random.Random(options.seed)
    rows, at_s = [], 0.0
    for _ in range(options.num):
        at_s += rng.expovariate(options.rate)
        prompt = min(options.longest // 2, max(8, int(rng.lognormvariate(4.6, 0.8))))
        rows.append((at_s, prompt, min(options.longest // 2, max(2, int(rng.lognormvariate(3.0, 0.6))))))
    return rows


async def run_live(deployment: Deployment, model_path: str, rows: Rows, log: Path) -> tuple[list, int]:
    live = LiveCluster(
        deployment,
        model_path=model_path,
        draft_model_path=None,
        threads=deployment.threads or threads_per_worker(deployment),
        decision_log=log,
    )
    await live.start()
    rng = random.Random(1)
    begun = time.monotonic() + 0.5

    async def one(number: int, at_s: float, prompt_len: int, output_len: int) -> tuple[float, float | None]:
        prompt = [rng.randrange(10, live.model.vocab_size - 10) for _ in range(prompt_len)]
        sampling = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True)
        await asyncio.sleep(begun + at_s - time.monotonic())
        arrived, first, num = time.monotonic(), 0.0, 0
        async for delta in live.generate(
            Request(id=f"r{number}", prompt_token_ids=prompt, sampling=sampling)
        ):
            first = first or time.monotonic()
            num += len(delta.token_ids)
        assert num == output_len, f"r{number} gave {num} of {output_len} tokens"
        return first - arrived, (time.monotonic() - first) / (num - 1) if num > 1 else None

    try:
        answers = await asyncio.gather(*(one(i, *row) for i, row in enumerate(rows)))
        kv_tokens = min(w.stats.num_blocks for w in live.workers() if w.stats) * deployment.limits.block_size
        return answers, kv_tokens
    finally:
        await live.stop(0)


Spreads = tuple[StepSpread | None, StepSpread | None]  # of steps that only decode, and with prompts


def fitted(ledger: str, kv_tokens: int) -> tuple[WorkerTimes, Spreads]:
    """Times from all steps; the spread of decoding and of prompts each from the worker that has most of the kind."""
    by_worker: list[list[Row]] = [ledger_rows(path) for path in sorted(glob.glob(f"{ledger}.*"))]
    steps = [row for some in by_worker for row in some]
    times = fit_steps(
        steps, kv_tokens=kv_tokens, kv_token_bytes=0.0, source=f"{len(steps)} steps of the ledger"
    )
    decoded, prompts = (
        max(by_worker, key=lambda some: sum(bool(row[1]) == kind for row in some)) for kind in (False, True)
    )
    return times, (fit_spread(decoded, times)[0], fit_spread(prompts, times)[1])


def run_simulated(
    deployment: Deployment, rows: Rows, times: WorkerTimes, spreads: Spreads, seed: int
) -> list:
    limits = deployment.limits
    body = Body(times=times, token_budget=limits.token_budget, max_num_seqs=limits.max_num_seqs)
    plan = Plan(
        setup=setup_of(deployment, prefill_times=times, decode_times=times),
        prefill=deployment.prefill,
        decode=deployment.decode,
        prefill_body=body,
        decode_body=body,
        physics=Physics(
            start_s=deployment.control.start_s,
            transfer_base_s=0.0,
            flip_s=0.0,
            lends=deployment.transfer.mode == "map",
            spread=spreads[0],
            prompt_spread=spreads[1],
            seed=seed,
        ),
    )
    requests = [SimRequest(i, at_s, prompt, output, []) for i, (at_s, prompt, output) in enumerate(rows)]
    Cluster(plan, requests).run()
    return [(r.ttft_s, r.tpot_s) for r in requests]


def figures(answers: list, slo: SLO) -> dict:
    ttft = [first * 1e3 for first, _ in answers]
    tpot = [each * 1e3 for _, each in answers if each is not None]
    met = [
        (slo.ttft_ms is None or first * 1e3 <= slo.ttft_ms)
        and (slo.tpot_ms is None or each is None or each * 1e3 <= slo.tpot_ms)
        for first, each in answers
    ]
    return {"ttft_ms": percentiles(ttft), "tpot_ms": percentiles(tpot), "attainment": sum(met) / len(met)}


def off(model: dict, live: dict) -> dict:
    return {
        name: {p: model[name][p] / live[name][p] - 1 for p in ("p50", "p90")}
        for name in ("ttft_ms", "tpot_ms")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--trace")
    parser.add_argument("--prefill", type=int, default=1)
    parser.add_argument("--decode", type=int, default=1)
    parser.add_argument("--policy", default="static")
    parser.add_argument("--rate", type=float, default=0.5, help="requests a second")
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--longest", type=int, default=1024, help="prompt and output tokens together")
    parser.add_argument("--slo-ttft-ms", type=float, default=2000.0)
    parser.add_argument("--slo-tpot-ms", type=float, default=80.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    slo = SLO(ttft_ms=options.slo_ttft_ms, tpot_ms=options.slo_tpot_ms)
    with tempfile.TemporaryDirectory() as folder:
        ledger, log = f"{folder}/ledger", Path(folder) / "decisions.jsonl"
        document = Deployment(
            model=options.model,
            prefill=options.prefill,
            decode=options.decode,
            limits=EngineLimits(max_context=2 * options.longest),
            ledger=ledger,
            cluster=ClusterSpec(policy=options.policy, slo=slo, period_s=5.0),
        )
        document.check()
        rows = rows_of(options)
        path = str(store.pull(options.model, lambda line: print(line, file=sys.stderr)))
        answers, kv_tokens = asyncio.run(run_live(document, path, rows, log))
        again = replay(log)
        times, spreads = fitted(ledger, kv_tokens)
        even = run_simulated(document, rows, times, (None, None), 0)
        varied = [a for seed in range(SEEDS) for a in run_simulated(document, rows, times, spreads, seed)]
    live, model, wide = (figures(some, slo) for some in (answers, even, varied))
    print(
        json.dumps(
            {
                "options": vars(options),
                "live": live,
                "simulated": model,
                "simulated_over_live_minus_1": off(model, live),
                "attainment_points": 100 * (model["attainment"] - live["attainment"]),
                "with_spread": wide,
                "with_spread_over_live_minus_1": off(wide, live),
                "with_spread_attainment_points": 100 * (wide["attainment"] - live["attainment"]),
                "spreads": msgspec.to_builtins(spreads),
                "replay": {"answers": again.num_answers, "differences": again.num_differences},
                "times": msgspec.to_builtins(times),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
