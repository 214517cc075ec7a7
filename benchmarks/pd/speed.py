"""The simulator's and the router's own speed: a million requests on ten thousand workers, a decision at a thousand.

    .venv/bin/python benchmarks/pd/speed.py [--requests 1000000] [--workers 10000]

CPU seconds of one process (the machine is shared), peak memory, and microseconds a routing decision.
"""

import argparse
import gc
import resource
import time

import numpy as np

from mortice.cost import Formats, Layout
from mortice.cost.worker_times import worker_times
from mortice.sched.events import Cached, Joined
from mortice.sched.plane import ControlPlane
from mortice.sim.cluster import Cluster
from mortice.sim.scenario import poisson, pools
from mortice.specs.catalogue import load_hardware, load_model
from mortice.specs.slo import SLO

TIMES = worker_times(load_model("llama-3.1-8b"), load_hardware("h100"), Layout(), Formats())
SLOS = SLO(ttft_ms=500, tpot_ms=25)


def simulate(num_requests: int, num_workers: int) -> None:
    requests = poisson(num_requests, 12.0 * num_workers, seed=0)
    gc.collect()
    gc.disable()
    began = time.process_time()
    cluster = Cluster(pools(TIMES, num_workers // 2, num_workers - num_workers // 2, slo=SLOS), requests)
    cluster.run()
    spent = time.process_time() - began
    gc.enable()
    assert all(r.stage == "finished" for r in requests)
    busy = np.mean([w.busy_s for w in cluster.workers.values()]) / cluster.clock.now_s
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print(
        f"{num_requests:,} requests on {num_workers:,} workers: {spent:.1f} s CPU, {spent / num_requests * 1e6:.0f} us and "
        f"{cluster.clock.num_events / num_requests:.1f} events a request, {memory:.2f} GiB, "
        f"{cluster.clock.now_s:.1f} s of virtual time, workers {busy:.0%} busy"
    )


def route(num_workers: int, *, with_prefixes: bool) -> None:
    plane = ControlPlane(pools(TIMES, 1, 1, slo=SLOS).setup)
    for i in range(num_workers):
        plane.hear(Joined(0.0, f"w{i}", "prefill" if i % 2 else "decode", 10_000))
    names = [[(g * 1000 + b).to_bytes(8, "big") for b in range(64)] for g in range(200)]
    if with_prefixes:
        for i in range(num_workers):
            plane.hear(
                Cached(f"w{i}", [n for g in range(i % 20, 200, 20) for n in names[g][: 8 + i % 50]], [])
            )
    count = 20_000
    began = time.process_time()
    for i in range(count):
        plane.arrived(0.0, f"r{i}", 1024, names[i % 200] if with_prefixes else [])
        plane.prefilled(f"r{i}")
        if i >= 500:
            plane.ended(f"r{i - 500}", 100, 0.1, 0.01)
    spent = (time.process_time() - began) / count * 1e6
    began = time.process_time()
    for i in range(count):
        plane.router.place(1024, names[i % 200] if with_prefixes else [], plane.fleet, now_s=0.0)
    alone = (time.process_time() - began) / count * 1e6
    print(
        f"routing at {num_workers:,} workers{' with prefixes' if with_prefixes else ''}: {alone:.1f} us a decision, "
        f"{spent:.1f} us a request with all its books (two decisions)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=10_000)
    options = parser.parse_args()
    route(1000, with_prefixes=False)
    route(1000, with_prefixes=True)
    simulate(options.requests, options.workers)


if __name__ == "__main__":
    main()
