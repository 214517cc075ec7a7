"""What clients do to a server by malice or by accident, beside others who just want their answers.

One server over two real workers on the fake model, whose text hangs on every token of KV. In each test healthy clients
stream all along, and must get the reference text; afterwards nothing may be left of the others: no request, no block,
no connection, no memory.
"""

import asyncio
import contextlib
import gc
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import httpx
import psutil
import pytest
import pytest_asyncio

from mortice.cluster.flight import Flight
from mortice.cluster.live import LiveCluster
from mortice.models.fake import reference_tokens
from mortice.serve.app import build_app
from mortice.serve.edge import Edge
from mortice.serve.link import Link
from mortice.serve.options import ServeOptions
from mortice.serve.run import run_server
from mortice.serve.running import Mailbox, Run
from mortice.specs.deployment import Admission, Deployment, EngineLimits
from mortice.text.fake import write_byte_model
from mortice.text.service import TextService

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADMISSION = Admission(
    max_queued=48,
    max_connections=400,
    max_head_bytes=16 << 10,
    max_body_bytes=256 << 10,
    max_held_body_bytes=8 << 20,
    header_timeout_s=1.5,
    body_timeout_s=1.5,
)
OPTIONS = ServeOptions(admission=ADMISSION, stall_s=1.5, max_pending_tokens=256)
SEED = 11


@dataclass
class Server:
    cluster: LiveCluster
    edge: Edge
    text: TextService
    host: str
    port: int
    http: httpx.AsyncClient

    async def connect(self, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 20)
        writer.write(sent)
        return reader, writer

    def post(self, body: dict, *, close: bool = True) -> bytes:
        return post("/v1/completions", json.dumps(body).encode(), close=close)

    async def at_rest(self) -> None:
        """Until no request is left anywhere; then every worker's books are walked."""
        await until(lambda: self.edge.num_in_flight == 0 and self.cluster.num_in_flight() == 0)
        for _ in range(200):
            answers = (await self.cluster.call("check_integrity", {})).values()
            if all(a["num_sequences"] == a["num_leases"] == a["num_fetching"] == 0 for a in answers):
                break
            await asyncio.sleep(0.05)
        assert all(a["num_free_blocks"] == a["num_blocks"] for a in answers), answers
        assert self.edge.timelines == {}
        assert self.edge.bodies.num_bytes == 0

    def num_connections(self) -> int:
        """TCP connections that this process has accepted and not closed."""
        found = psutil.Process().net_connections("tcp")
        return sum(c.laddr.port == self.port and c.status != "LISTEN" for c in found if c.laddr)


def post(path: str, body: bytes, *, length: int | None = None, close: bool = True) -> bytes:
    length = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
    return head.encode() + (b"Connection: close\r\n\r\n" if close else b"\r\n") + body


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    deployment = Deployment(
        model="fake:",
        prefill=1,
        decode=1,
        local_prefill_tokens=4,
        admission=ADMISSION,
        limits=EngineLimits(block_size=4, token_budget=64, max_num_seqs=32),
    )
    cluster = LiveCluster(deployment, model_path="fake:", draft_model_path=None, threads=1)
    text = TextService(write_byte_model(tmp_path_factory.mktemp("model")))
    await asyncio.gather(cluster.start(), text.start())
    app = build_app(cluster, text, OPTIONS)
    started = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run_server(app, port=0, on_started=lambda *address: started.set_result(address), signals=False)
    )
    try:
        await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
        host, port = started.result()
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=60, limits=limits) as http:
            yield Server(cluster, app.edge, text, host, port, http)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await text.stop()
        await cluster.stop(0)


async def until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def healthy(server: Server, count: int = 4) -> AsyncIterator[None]:
    """So many clients stream one answer after the other for the length of the block, and nothing may disturb them."""
    stop = asyncio.Event()
    done = 0

    async def client(number: int) -> None:
        nonlocal done
        rng = random.Random(SEED * 1000 + number)
        while not stop.is_set():
            prompt = [rng.randrange(1, 256) for _ in range(rng.randrange(2, 40))]
            assert await ask(server, prompt, 24) == reference_tokens(prompt, 24)
            done += 1

    clients = [asyncio.create_task(client(number)) for number in range(count)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*clients)
    assert done >= count
    await server.at_rest()


async def ask(server: Server, prompt: list[int], max_tokens: int) -> list[int]:
    """The tokens of a stream; it waits and comes again where it is told to."""
    body = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,
    }
    tokens: list[int] = []
    while True:
        async with server.http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                await asyncio.sleep(0.1)
                continue
            assert answer.status_code == 200, await answer.aread()
            lines = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        for line in lines[:-1]:
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            tokens += chunk["choices"][0].get("token_ids") or []
        return tokens


async def status_of(reader: asyncio.StreamReader) -> int:
    """Status of the answer on a raw connection that the server then closes; 0 if it was closed without one."""
    try:
        answer = await asyncio.wait_for(reader.read(), 20)
    except ConnectionResetError:
        return 0
    return int(answer.split(b" ", 2)[1]) if answer else 0


def alive(*kinds: type) -> list:
    return [found for found in gc.get_objects() if type(found) in kinds]


async def crowd(count: int, one: Callable[[int], Awaitable[None]]) -> None:
    await asyncio.gather(*(one(number) for number in range(count)))


async def test_slow_heads_and_slow_bodies_are_sent_away(server: Server) -> None:
    whole = server.post({"prompt": "a", "max_tokens": 4})
    statuses: dict[int, int] = {}

    async def dawdle(number: int) -> None:
        """A byte now and then: of the head, of the body, of a chunked body; or nothing at all."""
        chunked = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        first = [b"", whole[:9], whole[: whole.index(b"\r\n\r\n") + 6], chunked][number % 4]
        reader, writer = await server.connect(first)
        answer = asyncio.create_task(status_of(reader))
        while not answer.done():
            with contextlib.suppress(ConnectionError):
                writer.write([b"", b"a", b" ", b"1\r\n \r\n"][number % 4])
                await writer.drain()
            await asyncio.wait({answer}, timeout=0.2)
        statuses[number] = answer.result()
        writer.close()

    async with healthy(server):
        await crowd(200, dawdle)
    assert len(statuses) == 200
    # One that writes on after the end of its connection may lose the answer to a reset.
    assert set(statuses.values()) <= {0, 408}
    assert {status for number, status in statuses.items() if number % 4 == 0} == {408}


async def test_clients_that_vanish_by_the_hundred(server: Server) -> None:
    rng = random.Random(SEED)
    unexpected: list[bytes] = []

    async def vanish(number: int) -> None:
        prompt = [rng.randrange(1, 256) for _ in range(rng.randrange(2, 300))]
        body = {"prompt": prompt, "max_tokens": 200, "n": rng.choice([1, 1, 3]), "stream": number % 2 == 0}
        sent = server.post(body)
        sent = (
            sent if number % 5 else sent[: rng.randrange(1, len(sent))]
        )  # some in the middle of their prompt
        reader, writer = await server.connect(sent)
        try:
            if number % 2 == 0 and number % 5:
                await asyncio.wait_for(reader.readuntil(b"data: "), 30)
            else:
                await asyncio.sleep(rng.uniform(0, 0.3))
        except asyncio.IncompleteReadError as refused:
            unexpected.extend([] if b"429" in refused.partial[:16] else [refused.partial[:80]])
        if number % 3:
            writer.close()
        else:
            writer.transport.abort()  # a reset, not a farewell

    async with healthy(server):
        for _ in range(5):
            await crowd(80, vanish)
    assert unexpected == []


async def test_clients_that_stop_reading_lose_their_request_and_hold_little(server: Server) -> None:
    """Streams end at the bound on what waits for their client; whole answers when the kernel sees nothing taken."""
    streamed = {"prompt": [5, 6, 7], "max_tokens": 3000, "logprobs": 20, "stream": True, "n": 2}
    whole = {"prompt": [5, 6, 7], "max_tokens": 1500, "logprobs": 20, "return_token_ids": True}
    writers: list[asyncio.StreamWriter] = []
    most_pending = 0

    async def deaf(number: int) -> None:
        reader, writer = await asyncio.open_connection(server.host, server.port, limit=1)
        writers.append(writer)
        writer.transport.pause_reading()
        writer.write(server.post(streamed if number % 3 else whole))
        assert not reader.at_eof()

    async with healthy(server):
        before = server.num_connections()
        await crowd(12, deaf)
        await until(lambda: server.cluster.num_in_flight() >= 12)
        async with asyncio.timeout(60):
            while server.num_connections() > before + 4:  # the healthy ones
                boxes = alive(Mailbox)
                most_pending = max([most_pending, *(box._num_tokens for box in boxes)])
                await asyncio.sleep(0.1)
    assert most_pending <= OPTIONS.max_pending_tokens + 64  # and the step that passed the bound
    assert b"slow_readers_aborted_total" in server.edge.metrics.render()
    for writer in writers:
        writer.close()


async def test_hostile_input_harms_nobody_else(server: Server) -> None:
    rng = random.Random(SEED)
    good = {"prompt": "a", "max_tokens": 2}
    bad = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(400),  # TLS to a plain port
        rng.randbytes(5000),
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"%00%ff" * 300 + b" HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    bodies: list[tuple[bytes, int]] = [
        (b"{" * 10_000, 400),
        (rng.randbytes(10_000), 400),
        (b'{"prompt": "\\ud800", "max_tokens": 1}', 400),
        (b'{"prompt": "a", "temperature": 1e999}', 400),
        (json.dumps(good | {"stop": ["x"] * 10_000}).encode(), 400),
        (json.dumps(good | {"prompt": [300]}).encode(), 400),
        (json.dumps(good | {"prompt": [1] * 60_000}).encode(), 400),
        (json.dumps(good | {"prompt": ["a"] * 1000}).encode(), 400),
        (json.dumps(good | {"n": 10**6}).encode(), 400),
        (json.dumps(good | {"logit_bias": {str(i): 200 for i in range(5000)}}).encode(), 400),
        (json.dumps(good | {"guided_regex": "(" * 5000}).encode(), 400),
        # The fake model has no vocabulary for grammars: its worker fails these two, and nothing else.
        (json.dumps(good | {"guided_regex": "(((a{1,9999}){1,9999}){1,9999}){1,9999}"}).encode(), 500),
        (json.dumps(good | {"guided_json": {"type": "object"}}).encode(), 500),
    ]
    wrong: list[str] = []

    async def throw(number: int) -> None:
        if number % 3 == 0:
            reader, writer = await server.connect(bad[number // 3 % len(bad)])
            status = await status_of(reader)
            if status not in (400, 404, 408):
                wrong.append(f"{bad[number // 3 % len(bad)][:60]!r}: {status}")
            writer.close()
            return
        body, expected = bodies[number % len(bodies)]
        answer = await server.http.post("/v1/completions", content=body)
        if answer.status_code not in (expected, 429):
            wrong.append(f"{body[:60]!r}: {answer.status_code} {answer.text[:100]}")
        elif set(answer.json()["error"]) != {"message", "type", "param", "code"}:
            wrong.append(f"{body[:60]!r}: {answer.text[:100]}")

    async with healthy(server):
        for _ in range(3):
            await crowd(90, throw)
    assert wrong == []


async def test_oversize_everything(server: Server) -> None:
    endless_header = b"GET /health HTTP/1.1\r\nX-Much: "
    chunked = b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    floods = [  # how it begins, what is repeated for ever, the answer
        (endless_header, b"a" * 4096, {431}),
        (b"GET /health HTTP/1.1\r\n", b"X-More: a\r\n" * 300, {431}),
        (b"GET /", b"a" * 4096, {431, 400}),
        (chunked + b"1;", b"ext=" * 1000, {431, 400}),
        (chunked + b"1\r\na\r\n0\r\n", b"X-Trailer: a\r\n" * 300, {431, 400}),
        (chunked, b"400\r\n" + b" " * 1024 + b"\r\n", {413}),
        (post("/v1/completions", b"", length=1 << 40), b" " * 4096, {413}),
    ]
    wrong: list[str] = []

    async def pour(number: int) -> None:
        begin, more, expected = floods[number % len(floods)]
        reader, writer = await server.connect(begin)
        answer = asyncio.create_task(status_of(reader))
        with contextlib.suppress(ConnectionError):
            while not answer.done():
                writer.write(more)
                await writer.drain()
                await asyncio.sleep(0)
        status = await answer
        if status not in expected | {0}:  # 0: the reset overtook the answer
            wrong.append(f"{begin[:60]!r}: {status}")
        writer.close()

    async with healthy(server):
        for _ in range(3):
            await crowd(35, pour)
    assert wrong == []


async def test_bodies_together_are_bounded(server: Server) -> None:
    size = 200 << 10
    statuses: list[int] = []
    held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    async with healthy(server, 2):
        for _ in range(80):  # twice what may be held; each lacks its last byte
            held.append(await server.connect(post("/v1/completions", b" " * size, length=size + 1)))
        for reader, writer in held:
            line = await asyncio.wait_for(reader.readline(), 20)
            statuses.append(int(line.split()[1]))
            writer.close()
        assert server.edge.bodies.num_bytes <= ADMISSION.max_held_body_bytes
    assert set(statuses) == {408, 429}
    assert b'reason="bodies_full"' in server.edge.metrics.render()


async def test_a_flood_beyond_the_queue_is_told_to_come_back(server: Server) -> None:
    counts = {200: 0, 429: 0}

    async def one(number: int) -> None:
        prompt = [1 + number % 255, 7, 9]
        body = {"prompt": prompt, "max_tokens": 200, "temperature": 0, "return_token_ids": True}
        answer = await server.http.post("/v1/completions", json=body)
        counts[answer.status_code] += 1
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "queue_full"
        else:
            assert answer.json()["choices"][0]["token_ids"] == reference_tokens(prompt, 200)

    async with healthy(server):
        await crowd(300, one)
    assert counts[429] > 0
    assert counts[200] >= ADMISSION.max_queued - 4


async def test_a_flood_of_connections_is_bounded(server: Server) -> None:
    refused = 0

    async def idle(number: int) -> None:
        nonlocal refused
        reader, writer = await server.connect(b"")
        status = await status_of(reader)
        assert status in (408, 503)
        refused += status == 503
        writer.close()

    async with healthy(server, 2):
        await asyncio.sleep(0.3)  # the healthy ones have their connections
        await crowd(ADMISSION.max_connections + 100, idle)
    assert refused >= 90


async def test_requests_in_a_pipeline_do_not_hide_that_the_client_is_gone(server: Server) -> None:
    long = server.post({"prompt": [3, 4, 5], "max_tokens": 3000, "temperature": 0}, close=False)
    async with healthy(server, 2):
        for _ in range(20):
            _, writer = await server.connect(long * 5)
            await asyncio.sleep(0.02)
            writer.close()
        await until(lambda: server.edge.num_in_flight <= 2, 5)
    reader, writer = await server.connect(server.post({"prompt": [3], "max_tokens": 2}, close=False) * 2)
    answer = await asyncio.wait_for(reader.read(), 20)  # and the connection is closed after the first
    assert answer.count(b"HTTP/1.1 200") == 1
    writer.close()


async def test_nothing_is_left_and_memory_stays(server: Server) -> None:
    """All of the above leaves no object of a request behind, and waves of abuse do not make the processes grow."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]

    async def wave(number: int) -> None:
        body = {
            "prompt": [1 + number % 200] * 200,
            "max_tokens": 64,
            "logprobs": 5,
            "stream": number % 2 == 0,
        }
        reader, writer = await server.connect(server.post(body))
        await asyncio.wait_for(reader.read(1000), 30)
        writer.transport.abort()

    async def waves(count: int) -> None:
        for _ in range(count):
            await crowd(60, wave)
        await server.at_rest()
        gc.collect()

    await waves(3)
    before = [process.memory_info().rss for process in processes]
    await waves(6)
    after = [process.memory_info().rss for process in processes]
    assert [b - a < 24 << 20 for a, b in zip(before, after, strict=True)] == [True] * len(processes), (
        before,
        after,
    )
    await until(lambda: not gc.collect() and not alive(Flight, Run, Mailbox, Link), 5)
