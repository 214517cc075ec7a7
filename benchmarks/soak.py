"""An hour at capacity: does the server keep its memory, its books and its manners?

    python benchmarks/soak.py [--minutes 60] [--ci]        --ci: two minutes

One P/D server (a thread a worker, a small KV pool, so that blocks are evicted and sequences preempted) is kept
busy by `--users` who draw what they do from a seed: whole answers, streams, hang-ups in both, several choices,
JSON schemas, long prompts, shared prefixes, refused requests. Beside them, every `--every` seconds, the memory of
each process is noted and /admin/check_integrity is called, and every `--flip-every` seconds an operator gives the
workers other roles: divided, undivided, both decoding. After the last request the server must be idle again,
with every block free.

Exit code 1 if anything holds:
- a process grew by more than `--max-growth-mib` over the second half: its private memory by a line through its
  samples (Theil-Sen, which one odd sample does not bend);
- the books were wrong, or blocks, leases or sequences were left over at the end;
- a 5xx, a broken connection, an answer that is not what was asked for; or no request of some kind ended well.
Prints one JSON object.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from importlib.metadata import version
from itertools import combinations, cycle
from pathlib import Path
from typing import Any

from contenders import mortice
from served import MIB, Served, StartFailed, cpu_name, memory_of
from soak_mix import KINDS, Failure, User

from mortice import __version__
from mortice.bench.http import Client, ExchangeFailed
from mortice.bench.loop import run as run_loop

KV_BYTES = 192 * MIB  # a worker: some 8,000 tokens of SmolLM2, less than the users ask for together
DIVISIONS = ({"prefill": 1, "decode": 1}, {"mixed": 2}, {"decode": 2})
SETTLE_S = 60.0  # an aborted prompt may still be computed when the last user leaves


class Watch:
    """Memory and integrity, sampled beside the load. `problems` are what must not happen."""

    def __init__(self, served: Served, client: Client) -> None:
        self.samples: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.num_checks = 0
        self.num_flips = 0
        self._served = served
        self._client = client
        self._names: dict[int, str] = {}
        self._began = time.monotonic()

    async def every(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self.look()

    async def look(self) -> dict[str, Any]:
        """One sample; returns what the workers said of their books."""
        if not self._served.alive():
            self.problems.append(f"the server ended {time.monotonic() - self._began:.0f} s after the start")
        memory = {}
        for process in self._served.tree():
            if found := memory_of(process.pid):
                memory[self._name(process.pid)] = {
                    kind.lower(): round(found.get(kind, 0.0), 1) for kind in ("Rss", "Pss")
                } | {"private": round(found.get("Private_Clean", 0.0) + found.get("Private_Dirty", 0.0), 1)}
        self.samples.append({"at_s": round(time.monotonic() - self._began, 1), "memory_mib": memory})
        return await self._check()

    async def flip(self, seconds: float) -> None:
        """Divide the workers anew, again and again; `num_flips` counts the turns that were taken."""
        for division in cycle(DIVISIONS[1:] + DIVISIONS[:1]):
            await asyncio.sleep(seconds)
            try:
                answer = await self._client.exchange("POST", "/admin/roles", json.dumps(division).encode())
            except ExchangeFailed as failed:
                self.problems.append(f"roles: {failed}")
                continue
            if answer.status == 200:
                self.num_flips += 1
            else:
                self.problems.append(f"roles: status {answer.status}: {answer.body[:300].decode()}")

    async def _check(self) -> dict[str, Any]:
        try:
            answer = await self._client.exchange("POST", "/admin/check_integrity", b"{}")
        except ExchangeFailed as failed:
            self.problems.append(f"check_integrity: {failed}")
            return {}
        if answer.status != 200:
            self.problems.append(f"check_integrity: status {answer.status}: {answer.body[:300].decode()}")
            return {}
        self.num_checks += 1
        workers: dict[str, Any] = json.loads(answer.body)["workers"]
        return workers

    def _name(self, pid: int) -> str:
        """ "worker-0.1 (1234)": as the process calls itself."""
        if pid not in self._names:
            self._names[pid] = f"{Path(f'/proc/{pid}/comm').read_text().strip()} ({pid})"
        return self._names[pid]


async def soak(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    """The load for the time asked, then the idle check. Returns the result document, verdict included."""
    client = Client(served.url, timeout_s=300)
    watch = Watch(served, client)
    ended: Counter[str] = Counter()
    failures: list[Failure] = []
    stop = asyncio.Event()
    users = [User(served.url, options.seed, number, ended, failures, stop) for number in range(options.users)]
    await watch.look()
    sampler = asyncio.create_task(watch.every(options.every))
    flipper = asyncio.create_task(watch.flip(options.flip_every))
    working = [asyncio.create_task(user.work()) for user in users]
    await asyncio.sleep(options.minutes * 60)
    stop.set()
    await asyncio.gather(*working)
    sampler.cancel()
    flipper.cancel()
    await asyncio.gather(sampler, flipper, return_exceptions=True)
    left = await idle(watch)
    client.close()

    growth = growth_of(watch.samples)
    problems = list(watch.problems)
    problems += [
        f"{name} grew by {mib:.1f} MiB in the second half"
        for name, mib in growth.items()
        if mib > options.max_growth_mib
    ]
    problems += [f"left over at the end: {line}" for line in left]
    problems += [f"{failure.kind}: {failure.what}" for failure in failures[:20]]
    problems += [f"no request of kind {kind} ended well" for kind in KINDS if not ended[kind]]
    problems += ["the roles never changed"] if not watch.num_flips else []
    return {
        "kind": "soak",
        "ok": not problems,
        "problems": problems,
        "num_failures": len(failures),
        "num_integrity_checks": watch.num_checks,
        "num_flips": watch.num_flips,
        "requests": dict(ended),
        "growth_mib": growth,
        "max_growth_mib": options.max_growth_mib,
        "peak_rss_mib": peaks(watch.samples, "rss"),
        "peak_pss_mib": peaks(watch.samples, "pss"),
        "samples": watch.samples,
    }


async def idle(watch: Watch) -> list[str]:
    """What the workers still hold once `SETTLE_S` have passed; empty as soon as they hold nothing."""
    until = time.monotonic() + SETTLE_S
    while True:
        left = []
        workers = await watch.look()
        for name, books in workers.items():
            held = books["num_blocks"] - books["num_free_blocks"]
            counts = {"blocks": held, "leases": books["num_leases"], "sequences": books["num_sequences"]}
            left += [f"{name} holds {count} {what}" for what, count in counts.items() if count]
        if not workers:
            return ["the workers' books could not be read"]
        if not left or time.monotonic() > until:
            return left
        await asyncio.sleep(1.0)


def growth_of(samples: list[dict[str, Any]]) -> dict[str, float]:
    """MiB of private memory that each process gained over the second half of the samples, by Theil-Sen."""
    half = samples[len(samples) // 2 :]
    growth = {}
    for name in half[-1]["memory_mib"]:
        points = [(s["at_s"], s["memory_mib"][name]["private"]) for s in half if name in s["memory_mib"]]
        slopes = [(b - a) / (t - s) for (s, a), (t, b) in combinations(points, 2) if t > s]
        if slopes:
            growth[name] = round(statistics.median(slopes) * (points[-1][0] - points[0][0]), 2)
    return growth


def peaks(samples: list[dict[str, Any]], kind: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for sample in samples:
        for name, memory in sample["memory_mib"].items():
            found[name] = max(found.get(name, 0.0), memory[kind])
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--ci", action="store_true", help="two minutes, a sample every 3 s, 64 MiB of growth")
    parser.add_argument("--every", type=float, default=30, help="seconds between samples")
    parser.add_argument("--flip-every", type=float, default=20, help="seconds between changes of roles")
    parser.add_argument("--users", type=int, default=12, help="requests at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-growth-mib", type=float, default=32, help="a process, over the second half")
    parser.add_argument(
        "--output", type=Path, default=Path("build/soak.json"), help="the same JSON, in a file"
    )
    options = parser.parse_args()
    if options.ci:  # too short for the allocator to settle, hence the wider bound
        options.minutes, options.every, options.max_growth_mib = 2.0, 3.0, 64.0
    if min(options.minutes, options.every, options.flip_every) <= 0 or options.users < 1:
        parser.error("--minutes, --every and --flip-every are above 0, --users at least 1")
    if options.minutes * 60 < 8 * options.every:
        parser.error("--every must leave at least eight samples")
    return options


def main() -> int:
    options = parse()
    server = mortice("mortice P/D", prefill=1, threads=1, quantize="none")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    log = options.output.with_suffix(".log")
    command = [*server.command, "--kv-bytes", str(KV_BYTES)]
    load_before = os.getloadavg()[0]
    try:
        with Served(command, model=server.model, log=log, environment=dict(server.environment)) as served:
            result = run_loop(soak(served, options))
    except StartFailed as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    result |= {
        "mortice": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "load_before": load_before},
        "minutes": options.minutes,
        "users": options.users,
        "seed": options.seed,
        "kv_bytes": KV_BYTES,
    }
    text = json.dumps(result, indent=1)
    options.output.write_text(text)
    print(text)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
