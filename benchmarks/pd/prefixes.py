"""What it gives to have cached prefixes sent between prefill workers (Mooncake's global cache): its conversation trace on
sixteen nodes of eight A800 with Llama-3.1-70B, half of them for prefill, by the speed of a node's ports.

    .venv/bin/python benchmarks/pd/prefixes.py --trace ../shared/traces/mooncake_fast25_conversation.jsonl.gz

One line each: TTFT, prompts that were sent a prefix, tokens computed.
"""

import argparse
from pathlib import Path

import msgspec
import numpy as np

from mortice.cost import Formats, Layout
from mortice.cost.worker_times import worker_times
from mortice.sched.prefix_fetch import PrefixFetch
from mortice.sim.cluster import Cluster
from mortice.sim.scenario import pools
from mortice.sim.traffic import prepared, requests_of
from mortice.specs.catalogue import load_hardware, load_model
from mortice.specs.slo import SLO
from mortice.specs.workload import Trace, read_trace

BLOCK = 512  # tokens, as the trace counts prefixes
MEMORY = 5_000_000  # tokens of a node: its cache lies in host memory too
TIMES = msgspec.structs.replace(
    worker_times(load_model("llama-3.1-70b"), load_hardware("a800"), Layout(tp=8), Formats()),
    kv_tokens=MEMORY,
)


def run(trace: Trace, port: float, *, sends: bool) -> str:
    requests = requests_of(trace, BLOCK, max_total=MEMORY)
    plan = pools(
        TIMES, 8, 8, slo=SLO(ttft_ms=10_000, tpot_ms=100), block_size=BLOCK, bytes_per_s=port / TIMES.gpus
    )
    if sends:
        fetch = PrefixFetch(base_s=plan.physics.transfer_base_s, token_s=TIMES.kv_token_bytes / port)
        plan = msgspec.structs.replace(plan, setup=msgspec.structs.replace(plan.setup, fetch=fetch))
    cluster = Cluster(plan, requests)
    cluster.run()
    ttft = np.array([r.ttft_s for r in requests])
    computed = sum(w.num_prefill_tokens for w in cluster.workers.values())
    p50, p90 = np.percentile(ttft, (50, 90))
    return (
        f"mean {ttft.mean():.2f} s, p50 {p50:.2f} s, p90 {p90:.2f} s, {sum(r.fetched > 0 for r in requests)} sent, "
        f"{computed / 1e6:.1f} M tokens computed"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--num", type=int, default=3000)
    parser.add_argument("--speed", type=float, default=0.6, help="of the trace's own time")
    options = parser.parse_args()
    trace = prepared(read_trace(options.trace), jitter_s=3.0)
    trace = msgspec.structs.replace(trace, requests=trace.requests[: options.num]).scaled(options.speed)
    print(f"each its own cache: {run(trace, 1e11, sends=False)}")
    for port in (1e11, 1e10, 1e9):
        print(f"sent at {port / 1e9:g} GB/s: {run(trace, port, sends=True)}", flush=True)


if __name__ == "__main__":
    main()
