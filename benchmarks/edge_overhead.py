"""What the HTTP edge costs in its own process: milliseconds a request, microseconds a streamed token.

The application runs over `FakeCluster`, so nothing waits for a model. It is called first as it is, with
in-memory `receive` and `send`, and then behind uvicorn over a loopback socket, by a client of a few lines
that runs in another process; CPU seconds of the server process stand beside the wall time. Tokens come one a
delta, each with a turn of the loop, and are sent one an event.

    python benchmarks/edge_overhead.py MODEL_FOLDER_OR_GGUF
"""

import argparse
import asyncio
import json
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from mortice import __version__
from mortice.serve.app import App, build_app
from mortice.serve.options import ServeOptions
from mortice.serve.run import run_server
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams
from mortice.testing import FakeCluster
from mortice.text.service import TextService

USER = [{"role": "user", "content": "Tell me of the sea, please, in some detail."}]
SHORT, LONG = 1, 513  # tokens of an answer; the cost of a token is the slope between the two


async def call(app: App, path: str, body: dict[str, Any]) -> int:
    """One request to the application itself; the number of body messages it sent."""
    data = json.dumps(body).encode()
    inbox = [{"type": "http.request", "body": data, "more_body": False}]
    sent = 0

    async def receive() -> dict[str, Any]:
        if inbox:
            return inbox.pop()
        await asyncio.Event().wait()
        raise AssertionError("nothing sets the event")

    async def send(message: Any) -> None:
        nonlocal sent
        sent += message["type"] == "http.response.body"

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    return sent


async def seconds_each(work: Callable[[], Awaitable[Any]], rounds: int) -> float:
    """Median over rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        await work()
        times.append(time.perf_counter() - start)
    return sorted(times)[rounds // 2]


async def measure(model: str, rounds: int) -> list[tuple[str, float, str]]:
    text = TextService(model)
    await text.start()
    words = await text.encode("The sea is wide and old, and it does not care for ships. " * 60)
    cluster = FakeCluster(
        vocab_size=text.vocab_size,
        eos_token_ids=text.eos_token_ids,
        max_context=4096,
        script=lambda request, index: words,
    )
    await cluster.start()
    app = build_app(cluster, text, ServeOptions())
    prompt = await text.encode("Tell me of the sea.")
    rows: list[tuple[str, float, str]] = []
    chat = "/v1/chat/completions"

    def work(path: str, tokens: int, **body: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: call(app, path, {"max_tokens": tokens, "ignore_eos": True, **body})

    for path, given in (("/generate", {"token_ids": prompt}), (chat, {"messages": USER})):
        short = await seconds_each(work(path, SHORT, **given), rounds)
        rows.append((f"application: {path}, one token", short * 1e3, "ms/request"))
        short = await seconds_each(work(path, SHORT, stream=True, **given), rounds)
        long = await seconds_each(work(path, LONG, stream=True, **given), max(rounds // 10, 5))
        rows.append((f"application: {path}, streamed", (long - short) / (LONG - SHORT) * 1e6, "µs/token"))

    empty = request_of_cluster(cluster, prompt)
    short = await seconds_each(lambda: empty(SHORT), rounds)
    long = await seconds_each(lambda: empty(LONG), max(rounds // 10, 5))
    rows.append(("of which the fake cluster", (long - short) / (LONG - SHORT) * 1e6, "µs/token"))

    started: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        run_server(app, port=0, on_started=lambda *address: started.set_result(address), signals=False)
    )
    host, port = await started
    for path, given in (("/generate", {"token_ids": prompt}), (chat, {"messages": USER})):
        body = {"ignore_eos": True, **given}
        once = await served_cpu_s(host, port, path, {**body, "max_tokens": SHORT}, rounds)
        rows.append((f"behind uvicorn: {path}, one token", once * 1e3, "CPU ms/request"))
        body["stream"] = True
        once = await served_cpu_s(host, port, path, {**body, "max_tokens": SHORT}, rounds)
        long = await served_cpu_s(host, port, path, {**body, "max_tokens": LONG}, max(rounds // 10, 5))
        rows.append(
            (f"behind uvicorn: {path}, streamed", (long - once) / (LONG - SHORT) * 1e6, "CPU µs/token")
        )
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await text.stop()
    return rows


CLIENT = """
import socket, sys
host, port, path, body, count = sys.argv[1:]
data = body.encode()
head = f"POST {path} HTTP/1.1\\r\\nHost: {host}\\r\\nContent-Length: {len(data)}\\r\\n\\r\\n".encode()
sock = socket.create_connection((host, int(port)))
end = b"0\\r\\n\\r\\n" if '"stream": true' in body else b"}"
for _ in range(int(count)):
    sock.sendall(head + data)
    tail = b""
    while not tail.endswith(end):
        tail = (tail + sock.recv(1 << 16))[-64:]
"""


async def served_cpu_s(host: str, port: int, path: str, body: dict[str, Any], count: int) -> float:
    """CPU seconds of this process for one of `count` requests, sent one after the other by another
    process.
    """

    async def run(requests: int) -> float:
        before = time.process_time()
        command = [sys.executable, "-S", "-c", CLIENT, host, str(port), path, json.dumps(body), str(requests)]
        process = await asyncio.create_subprocess_exec(*command)
        if await process.wait() != 0:
            raise RuntimeError("the client failed")
        return time.process_time() - before

    idle = await run(0)  # starting the client costs something too
    return max(await run(count) - idle, 0.0) / count


def request_of_cluster(cluster: FakeCluster, prompt: list[int]) -> Callable[[int], Awaitable[None]]:
    async def ask(tokens: int) -> None:
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
        async for _ in cluster.generate(Request(id="r", prompt_token_ids=prompt, sampling=sampling)):
            pass

    return ask


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    rows = uvloop.run(measure(args.model, args.rounds))
    print(f"mortice {__version__}, Python {platform.python_version()}, {platform.machine()}")
    for name, value, unit in rows:
        print(f"{name:55} {value:8.2f} {unit}")


if __name__ == "__main__":
    main()
