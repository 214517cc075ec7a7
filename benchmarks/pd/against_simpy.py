"""The simulator beside a plain model of the same cluster in SimPy 4, on the same requests and the same step times, in turns.

    .venv/bin/pip install simpy==4.1.2
    .venv/bin/python benchmarks/pd/against_simpy.py [--requests 10000] [--workers 100] [--rounds 3]

Both: prompts in batches of a token budget on the prefill worker with the least work, KV over ports to the decode worker
with the least context, decode on counts of tokens, memory of decode workers. Only ours: chunks beside decode, preemption,
leases and back-pressure, fair shares of a port (here ports serve one transfer after the other), faults, roles, and the
decisions of the live cluster's own code with their books. The model here takes every decode step as an event, which is
what one writes first; ours takes macro-steps. Vidur's wheel (0.0.26) holds no measured profiles and prices no step without
them, so it was not run.

CPU seconds of one process, medians over rounds; and how far the two agree on what the requests felt.
"""

import argparse
import gc
import statistics
import time
from collections import deque
from collections.abc import Generator
from heapq import heappop, heappush

import numpy as np
import simpy
from speed import SLOS, TIMES

from mortice.sim.cluster import Cluster
from mortice.sim.request import SimRequest
from mortice.sim.scenario import poisson, pools

BYTES_PER_S, BASE_S, BUDGET = 50e9, 0.001, 8192
Process = Generator[simpy.Event, None, None]


class Prefill:
    def __init__(self, plain: "Plain") -> None:
        self.plain = plain
        self.queue: deque[SimRequest] = deque()
        self.work_s = 0.0
        self.port = simpy.Resource(plain.env, 1)
        self.wake = plain.env.event()
        plain.env.process(self.run())

    def run(self) -> Process:
        env = self.plain.env
        while True:
            if not self.queue:
                self.wake = env.event()
                yield self.wake
            batch, budget = [], BUDGET
            while self.queue and (not batch or self.queue[0].prompt_len <= budget):
                request = self.queue.popleft()
                batch.append(request)
                budget -= request.prompt_len
            tokens = sum(r.prompt_len for r in batch)
            yield env.timeout(TIMES.mixed_s(tokens, sum(r.prompt_len**2 for r in batch), 0, 0))
            for request in batch:
                self.work_s -= TIMES.prefill_s(request.prompt_len)
                request.first_s, request.given = env.now, 1
                if request.output_len > 1:
                    env.process(self.hand_over(request))
                else:
                    request.end_s = env.now

    def hand_over(self, request: SimRequest) -> Process:
        env = self.plain.env
        decode = min(self.plain.decodes, key=Decode.load)
        decode.coming += request.prompt_len
        yield decode.memory.get(request.prompt_len + request.output_len)
        seconds = BASE_S + request.prompt_len * TIMES.kv_token_bytes / (BYTES_PER_S * TIMES.gpus)
        with self.port.request() as sends, decode.port.request() as receives:
            yield sends & receives
            yield env.timeout(seconds)
        decode.coming -= request.prompt_len
        decode.join(request)


class Decode:
    def __init__(self, plain: "Plain") -> None:
        self.plain = plain
        self.memory = simpy.Container(plain.env, TIMES.kv_tokens, TIMES.kv_tokens)
        self.port = simpy.Resource(plain.env, 1)
        self.joining: list[SimRequest] = []
        self.batch: list[tuple[int, int, SimRequest]] = []  # (step of its last token, index, request)
        self.context = self.coming = self.steps = 0
        self.wake = plain.env.event()
        plain.env.process(self.run())

    def load(self) -> int:
        return self.context + self.coming

    def join(self, request: SimRequest) -> None:
        self.joining.append(request)
        if not self.wake.triggered:
            self.wake.succeed()

    def run(self) -> Process:
        env = self.plain.env
        while True:
            if not self.batch and not self.joining:
                self.wake = env.event()
                yield self.wake
            for request in self.joining:
                heappush(self.batch, (self.steps + request.output_len - 1, request.index, request))
                self.context += request.prompt_len + 1
            self.joining.clear()
            yield env.timeout(TIMES.decode_s(len(self.batch), self.context))
            self.steps += 1
            self.context += len(self.batch)
            while self.batch and self.batch[0][0] <= self.steps:
                request = heappop(self.batch)[2]
                self.context -= request.prompt_len + request.output_len
                request.given, request.end_s = request.output_len, env.now
                yield self.memory.put(request.prompt_len + request.output_len)


class Plain:
    def __init__(self, requests: list[SimRequest], prefill: int, decode: int) -> None:
        self.env = simpy.Environment()
        self.prefills = [Prefill(self) for _ in range(prefill)]
        self.decodes = [Decode(self) for _ in range(decode)]
        self.env.process(self.arrive(requests))

    def arrive(self, requests: list[SimRequest]) -> Process:
        for request in requests:
            yield self.env.timeout(request.arrival_s - self.env.now)
            worker = min(self.prefills, key=lambda p: p.work_s)
            worker.queue.append(request)
            worker.work_s += TIMES.prefill_s(request.prompt_len)
            if not worker.wake.triggered:
                worker.wake.succeed()


def run_plain(requests: list[SimRequest], prefill: int, decode: int) -> None:
    Plain(requests, prefill, decode).env.run()


def run_ours(requests: list[SimRequest], prefill: int, decode: int) -> None:
    Cluster(
        pools(TIMES, prefill, decode, slo=SLOS, bytes_per_s=BYTES_PER_S, prefill_budget=BUDGET), requests
    ).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prefill = options.workers // 2
    spent: dict[str, list[float]] = {"mortice": [], "simpy": []}
    felt: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, run in (("mortice", run_ours), ("simpy", run_plain)):
            requests = poisson(options.requests, 12.0 * options.workers, seed=0)
            gc.collect()
            gc.disable()
            began = time.process_time()
            run(requests, prefill, options.workers - prefill)
            spent[name].append(time.process_time() - began)
            gc.enable()
            assert all(r.given == r.output_len for r in requests)
            ttft = np.percentile([r.ttft_s for r in requests], (50, 90))
            tpot = np.percentile([r.tpot_s for r in requests if r.tpot_s is not None], (50, 90))
            felt[name] = [*ttft, *tpot]
    for name, seconds in spent.items():
        middle = statistics.median(seconds)
        figures = ", ".join(f"{value * 1e3:.2f}" for value in felt[name])
        each = middle / options.requests * 1e6
        print(
            f"{name}: {middle:.2f} s CPU, {each:.0f} us a request; TTFT p50, p90, TPOT p50, p90 in ms: {figures}"
        )
    ratio = statistics.median(b / a for a, b in zip(spent["mortice"], spent["simpy"], strict=True))
    print(f"simpy over mortice: {ratio:.1f}")


if __name__ == "__main__":
    main()
