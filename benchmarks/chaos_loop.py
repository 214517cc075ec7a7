"""A hundred kills: `kill -9` of a random worker at a random moment, while clients stream from the whole server.

    python benchmarks/chaos_loop.py [--kills 100] [--seed N] [--prefill 2] [--decode 2] [--output FILE]

The server is `mortice serve` on SmolLM2 in float32. First each prompt is asked once in peace: those are the reference
tokens. Then `--clients` stream them in a closed loop, and workers die. Printed as one JSON object:

- lost: streams that did not end well (an error, a broken connection, an end without [DONE]); must be 0
- wrong: streams whose tokens differ from the reference; must be 0
- held_at_end: blocks, leases and sequences that any worker still held when all was over; must be empty
- replaced_s: from a kill to the moment the place has a running worker again, start of the process and loading included
- longest_silence_s: for each kill, the longest gap between tokens, over the streams that were open, that holds the
  instant of the kill: what a client feels of it. `quiet_silence_s` is the longest gap in streams that met no kill.

Exit code 1 if a request was lost, a token wrong, or something held.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import secrets
import signal
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from contenders import ROOT, gguf
from served import Served, StartFailed, cpu_name

from mortice import __version__
from mortice.bench.http import Client, ExchangeFailed, now
from mortice.bench.loop import run as run_loop
from mortice.bench.prompts import WORDS
from mortice.bench.sse import SSEReader
from mortice.bench.stats import percentile

NUM_PROMPTS = 24
SETTLE_S = 60.0


@dataclass
class Stream:
    """One answer: its tokens, and when events of it came."""

    prompt: int
    begun_s: float
    tokens: list[int] = field(default_factory=list)
    heard_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    error: str | None = None

    def silence_at(self, instant_s: float) -> float | None:
        """Length of the gap that holds the instant; None where the stream was not open then."""
        edges = [self.begun_s, *self.heard_s]
        for before, after in pairwise(edges):
            if before <= instant_s < after:
                return after - before
        return None


@dataclass(frozen=True)
class Kill:
    at_s: float
    place: str
    pid: int
    busy: bool  # it had a request


class Chaos:
    def __init__(self, url: str, options: argparse.Namespace) -> None:
        self._client = Client(url, timeout_s=300)
        self._random = random.Random(options.seed)
        self._options = options
        words = random.Random(f"prompts {options.seed}")
        self._prompts = [" ".join(words.choices(WORDS, k=words.randint(8, 180))) for _ in range(NUM_PROMPTS)]
        self._reference: list[list[int]] = []
        self._streams: list[Stream] = []
        self._kills: list[Kill] = []
        self._replaced_s: list[float] = []
        self._stop = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        for number in range(NUM_PROMPTS):
            calm = await self._stream(number)
            if calm.error is not None:
                raise ExchangeFailed("protocol", f"a stream failed in peace: {calm.error}")
            self._reference.append(calm.tokens)
        say(f"{NUM_PROMPTS} reference texts; {self._options.kills} kills follow")
        clients = [asyncio.create_task(self._work(number)) for number in range(self._options.clients)]
        watching: list[asyncio.Task[None]] = []
        for number in range(self._options.kills):
            await asyncio.sleep(self._random.uniform(0.05, self._options.pause_s))
            watching.append(asyncio.create_task(self._watch(await self._kill())))
            if (number + 1) % 10 == 0:
                say(f"{number + 1} kills, {len(self._streams)} streams ended")
        await asyncio.gather(*watching)
        self._stop.set()
        await asyncio.gather(*clients)
        held = await self._held()
        self._client.close()
        return self._report(held)

    async def _work(self, number: int) -> None:
        lot = random.Random(f"{self._options.seed} {number}")
        while not self._stop.is_set():
            stream = await self._stream(lot.randrange(NUM_PROMPTS))
            self._streams.append(stream)
            if stream.error is not None:
                say(f"lost: {stream.error}")
                await asyncio.sleep(0.5)

    async def _stream(self, prompt: int) -> Stream:
        stream = Stream(prompt, now())
        reader = SSEReader()
        events: list[bytes] = []

        def sink(at_s: float, piece: bytes) -> None:
            for event in reader.feed(piece):
                events.append(event)
                stream.heard_s.append(at_s)

        body = {
            "model": "smollm2", "prompt": self._prompts[prompt], "max_tokens": self._options.max_tokens,
            "temperature": 0, "ignore_eos": True, "stream": True, "return_token_ids": True,
        }  # fmt: skip
        try:
            answer = await self._client.exchange(
                "POST", "/v1/completions", json.dumps(body).encode(), sink=sink
            )
            if answer.status != 200:
                stream.error = f"status {answer.status}: {answer.body[:200].decode()}"
            elif events[-1:] != [b"[DONE]"]:
                stream.error = f"the stream ended with {events[-1:]}"
            for event in events[:-1]:
                chunk = json.loads(event)
                if "error" in chunk:
                    stream.error = str(chunk["error"])
                else:
                    stream.tokens += chunk["choices"][0].get("token_ids") or []
        except ExchangeFailed as failed:
            stream.error = str(failed)
        stream.ended_s = now()
        return stream

    async def _workers(self) -> list[dict[str, Any]]:
        answer = await self._client.exchange("GET", "/admin/workers")
        workers: list[dict[str, Any]] = json.loads(answer.body)
        return workers

    async def _kill(self) -> Kill:
        """End a worker that serves, whatever it is doing; wait for one where all are being replaced."""
        while True:
            alive = [worker for worker in await self._workers() if worker["state"] == "running"]
            if alive:
                victim = self._random.choice(alive)
                with suppress(ProcessLookupError):  # it is dead already, and the server has not seen it yet
                    os.kill(victim["pid"], signal.SIGKILL)
                    stats = victim.get("stats") or {}
                    busy = bool(stats.get("num_running", 0) + stats.get("num_pulling", 0))
                    kill = Kill(now(), victim["id"].rpartition(".")[0], victim["pid"], busy)
                    self._kills.append(kill)
                    return kill
            await asyncio.sleep(0.05)

    async def _watch(self, kill: Kill) -> None:
        while True:
            for worker in await self._workers():
                place = worker["id"].rpartition(".")[0]
                if place == kill.place and worker["pid"] != kill.pid and worker["state"] == "running":
                    self._replaced_s.append(now() - kill.at_s)
                    return
            await asyncio.sleep(0.05)

    async def _held(self) -> list[str]:
        until = now() + SETTLE_S
        while True:
            answer = await self._client.exchange("POST", "/admin/check_integrity", b"{}")
            if answer.status != 200:
                return [f"check_integrity: {answer.body[:300].decode()}"]
            held = []
            for name, books in json.loads(answer.body)["workers"].items():
                blocks = books["num_blocks"] - books["num_free_blocks"]
                counts = {
                    "blocks": blocks,
                    "leases": books["num_leases"],
                    "sequences": books["num_sequences"],
                }
                held += [f"{name} holds {count} {what}" for what, count in counts.items() if count]
            if not held or now() > until:
                return held
            await asyncio.sleep(0.5)

    def _report(self, held: list[str]) -> dict[str, Any]:
        lost = [stream.error for stream in self._streams if stream.error is not None]
        ended = [stream for stream in self._streams if stream.error is None]
        wrong = [stream for stream in ended if stream.tokens != self._reference[stream.prompt]]
        silences = []
        for kill in self._kills:
            gaps = [gap for stream in ended if (gap := stream.silence_at(kill.at_s)) is not None]
            silences.append(max(gaps, default=0.0))
        calm = [s for s in ended if not any(s.begun_s <= k.at_s < s.ended_s for k in self._kills)]
        gaps = [b - a for s in calm for a, b in pairwise(s.heard_s)]
        return {
            "kind": "chaos_loop",
            "ok": not lost and not wrong and not held,
            "kills": len(self._kills),
            "kills_of": dict(Counter(kill.place for kill in self._kills)),
            "kills_of_busy_workers": sum(kill.busy for kill in self._kills),
            "streams": len(self._streams),
            "streams_open_at_a_kill": len(ended) - len(calm),
            "tokens": sum(len(stream.tokens) for stream in ended),
            "lost": len(lost),
            "wrong": len(wrong),
            "held_at_end": held,
            "errors": lost[:10],
            "replaced_s": spread(self._replaced_s),
            "longest_silence_s": spread(silences),
            "quiet_silence_s": spread(gaps),
        }


def spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"p50": round(percentile(values, 50), 3), "p90": round(percentile(values, 90), 3),
            "max": round(max(values), 3)}  # fmt: skip


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--pause-s", type=float, default=4.0, help="at most so long between two kills")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(1 << 30), help="default: drawn, and printed"
    )
    parser.add_argument("--output", type=Path, default=Path("build/chaos_loop.json"))
    options = parser.parse_args()
    if min(options.kills, options.clients, options.decode, options.max_tokens) < 1 or options.prefill < 0:
        parser.error("--kills, --clients, --decode and --max-tokens are at least 1, --prefill at least 0")
    return options


def main() -> int:
    options = parse()
    say(f"seed {options.seed}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "mortice", "serve", "--model", str(gguf()), "--served-name", "smollm2",
        "--port", "{port}", "--prefill", str(options.prefill), "--decode", str(options.decode),
        "--threads", "1", "--dtype", "float32", "--max-context", "2048", "--local-prefill-tokens", "16",
        "--response-store", "off", "--log-level", "warning",
    ]  # fmt: skip
    load_before = os.getloadavg()[0]
    log = options.output.with_suffix(".log")
    try:
        with Served(
            command, model="smollm2", log=log, environment={"PYTHONPATH": str(ROOT / "src")}
        ) as served:
            result = run_loop(Chaos(served.url, options).run())
    except (StartFailed, ExchangeFailed) as error:
        say(f"chaos_loop: {error}")
        return 1
    result |= {
        "seed": options.seed,
        "clients": options.clients,
        "workers": {"prefill": options.prefill, "decode": options.decode},
        "mortice": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "load_before": load_before},
        "date": datetime.now(UTC).date().isoformat(),
    }
    text = json.dumps(result, indent=1)
    options.output.write_text(text)
    print(text)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
