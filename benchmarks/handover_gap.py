"""What a reader of a stream feels of the hand-over: the wait for its second token.

    python benchmarks/handover_gap.py [--rounds 3] [--prompts 12]

The first token comes from the prefill worker, the second from the decode worker, so the KV changes hands in between.
One server a mode (map, pull, push, TCP; and colocated, which hands nothing over), started in turn. One stream at a
time, fresh prompts of each length. `gap` is the time from the first to the second token; what it has over the median
of the later gaps of the same stream is the price of the hand-over. Medians over prompts and rounds.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
from collections import defaultdict
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from contenders import ROOT, gguf
from served import MachineUse, Served, cpu_name

from mortice import __version__
from mortice.bench.http import Client
from mortice.bench.loop import run as run_loop
from mortice.bench.sse import SSEReader

LENGTHS = (256, 1024, 4096)  # tokens of prompt
NUM_TOKENS = 24
MODES = {
    "colocated": ["--prefill", "0"],
    "map": ["--transfer", "map"],
    "pull": ["--transfer", "pull"],
    "push": ["--transfer", "push"],
    "tcp": ["--transport", "tcp"],
}


def command(mode: str) -> list[str]:
    return [
        sys.executable, "-m", "mortice", "serve", "--model", str(gguf()), "--served-name", "smollm2", "--port", "{port}",
        "--prefill", "1", "--decode", "1", "--threads", "1", *MODES[mode], "--response-store", "off",
    ]  # fmt: skip


async def streams(url: str, lot: random.Random, num_prompts: int) -> dict[int, list[tuple[float, float]]]:
    """By prompt length, (gap, price) in ms of each stream."""
    client = Client(url, timeout_s=300)
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for number in range(num_prompts + 1):  # the first meets the peer, and is no measurement
        for length in LENGTHS:
            token_ids = [lot.randrange(1000, 40000) for _ in range(length)]
            body = {
                "token_ids": token_ids,
                "max_tokens": NUM_TOKENS,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
            reader, heard = SSEReader(), []

            def sink(at_s: float, piece: bytes, reader: SSEReader = reader, heard: list = heard) -> None:
                heard.extend(at_s for event in reader.feed(piece) if event != b"[DONE]")

            answer = await client.exchange("POST", "/generate", json.dumps(body).encode(), sink=sink)
            if answer.status != 200 or len(heard) < NUM_TOKENS:
                raise SystemExit(f"status {answer.status}, {len(heard)} events: {answer.body[:200]!r}")
            gaps = [(b - a) * 1e3 for a, b in pairwise(heard[:NUM_TOKENS])]
            if number:
                found[length].append((gaps[0], gaps[0] - statistics.median(gaps[1:])))
    client.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=12, help="of each length, a round and mode")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    log = Path("build/handover_gap.log")
    log.parent.mkdir(exist_ok=True)
    lot = random.Random(options.seed)
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    others = []
    for turn in range(options.rounds):
        for mode in list(MODES)[:: 1 if turn % 2 == 0 else -1]:
            environment = {"PYTHONPATH": str(ROOT / "src")}
            server = Served(command(mode), model="smollm2", log=log, environment=environment)
            with server as served, MachineUse(served) as use:
                result = run_loop(streams(served.url, lot, options.prompts))
            others.append(use.figures()["others_cores"])
            for length, pairs in result.items():
                found[mode, length] += pairs
    print(
        f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, torch {version('torch')}, "
        f"mortice {__version__}, {datetime.now(UTC):%Y-%m-%d}; neighbours {statistics.median(others):.2f} cores\n"
    )
    print("| ms | " + " | ".join(f"{n} tokens: gap | price" for n in LENGTHS) + " |")
    print("| --- |" + " ---: | ---: |" * len(LENGTHS))
    for mode in MODES:
        cells = []
        for length in LENGTHS:
            gaps, prices = zip(*found[mode, length], strict=True)
            cells += [f"{statistics.median(gaps):.1f}", f"{statistics.median(prices):.1f}"]
        print(f"| {mode} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
