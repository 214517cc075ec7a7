"""Clients of every bad kind beside good ones, against the whole server: the good get their tokens, nothing is left."""

import asyncio
import gc
import json
import random
import socket
from contextlib import suppress

import httpx
import pytest

from mortice.cluster.live import LiveCluster
from mortice.models.fake import FAKE_VOCAB, reference_tokens
from mortice.serve.app import build_app
from mortice.serve.options import ServeOptions
from mortice.serve.run import run_server
from mortice.specs.deployment import Admission, Deployment, EngineLimits, Transfer
from mortice.text.service import TextService

GOOD_CLIENTS, ROUNDS = 4, 6
MAX_QUEUED = 24


@pytest.fixture
async def served(text_folder):
    """`host`, `port`, the edge and the cluster of a P/D server over the fake model."""
    admission = Admission(
        max_queued=MAX_QUEUED, max_body_bytes=200_000, header_timeout_s=0.5, body_timeout_s=0.5
    )
    deployment = Deployment(
        model="fake:",
        prefill=1,
        decode=1,
        local_prefill_tokens=4,
        limits=EngineLimits(block_size=4, token_budget=64, max_num_seqs=16),
        transfer=Transfer(),
        admission=admission,
    )
    cluster = LiveCluster(deployment, model_path="fake:", draft_model_path=None, threads=1)
    text = TextService(text_folder)
    await asyncio.gather(cluster.start(), text.start())
    app = build_app(cluster, text, ServeOptions(admission=admission, stall_s=1.0, max_pending_tokens=512))
    started = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run_server(app, port=0, on_started=lambda *address: started.set_result(address), signals=False)
    )
    await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
    host, port = started.result()
    try:
        yield Served(host, port, app.edge, cluster)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await text.stop()
        await cluster.stop(0)


@pytest.fixture
def text_folder(tmp_path):
    """A tokenizer that nobody asks anything: all requests here are token ids."""
    vocab = {f"t{i}": i for i in range(FAKE_VOCAB)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": FAKE_VOCAB}))
    return tmp_path


class Served:
    def __init__(self, host, port, edge, cluster):
        self.host, self.port, self.edge, self.cluster = host, port, edge, cluster
        self.url = f"http://{host}:{port}"

    async def connect(self, **options):
        return await asyncio.open_connection(self.host, self.port, **options)

    async def at_rest(self):
        for _ in range(200):
            books = (await self.cluster.call("check_integrity", {})).values()
            held = sum(b["num_sequences"] + b["num_leases"] + b["num_fetching"] for b in books)
            if not held and not self.edge.num_in_flight:
                return [b["num_blocks"] - b["num_free_blocks"] for b in books]
            await asyncio.sleep(0.05)
        raise AssertionError(f"still held: {books}, {self.edge.num_in_flight} in flight")


def prompt_of(length, rng):
    return [rng.randrange(1, FAKE_VOCAB) for _ in range(length)]


def request_of(prompt, count, **more):
    body = json.dumps({"token_ids": prompt, "max_tokens": count, "ignore_eos": True, **more}).encode()
    return b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def good_client(served, seed):
    """Whole and streamed answers in turn; a 429 is waited out as its header asks. Answers how many were good."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as http:
        for number in range(ROUNDS):
            prompt, count = prompt_of(rng.randrange(5, 40), rng), rng.randrange(5, 40)
            body = {"token_ids": prompt, "max_tokens": count, "ignore_eos": True, "stream": number % 2 == 1}
            while (answer := await http.post("/generate", json=body)).status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                await asyncio.sleep(0.05)  # sooner than asked: tests are short
            assert answer.status_code == 200, answer.text
            documents = [answer.json()] if number % 2 == 0 else list(events(answer.text))
            tokens = [t for d in documents for s in d["sequences"] for t in s["token_ids"]]
            assert tokens == reference_tokens(prompt, count)


def events(text):
    for line in text.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


async def drips_a_head(served, rng):
    _, writer = await served.connect()
    with suppress(ConnectionError):
        for byte in b"POST /generate HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 60:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)
    writer.close()


async def drips_a_body(served, rng):
    reader, writer = await served.connect()
    writer.write(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n{")
    assert b" 408 " in await reader.readline()
    writer.close()


async def vanishes_before_the_answer(served, rng):
    _, writer = await served.connect()
    writer.write(request_of(prompt_of(rng.randrange(5, 300), rng), 500))
    await asyncio.sleep(rng.random() * 0.02)
    writer.transport.abort()


async def vanishes_amid_a_stream(served, rng):
    reader, writer = await served.connect()
    writer.write(request_of(prompt_of(rng.randrange(5, 60), rng), 500, stream=True, n=rng.randrange(1, 4)))
    with suppress(ConnectionError):
        await reader.readline()
        await asyncio.sleep(rng.random() * 0.05)
    writer.transport.abort()


async def stops_reading(served, rng):
    """A small window, so that the server's own buffers fill at once."""
    plain = socket.create_connection((served.host, served.port))
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    plain.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(plain, request_of(prompt_of(8, rng), 900, stream=True, logprobs=5))
    await asyncio.sleep(2.0)
    plain.close()


async def sends_rubbish(served, rng):
    reader, writer = await served.connect()
    writer.write(rng.randbytes(2000) + b"\r\n\r\n")
    with suppress(ConnectionError):
        answer = await asyncio.wait_for(reader.read(), 5)
        assert b" 5" not in answer[:12]
    writer.close()


async def sends_what_cannot_be(served, rng):
    bodies = [
        b"[" * 50_000,
        b'{"token_ids": ' + b"9" * 5000 + b"}",
        b'{"token_ids": [1], "max_tokens": 1e999}',
        b'{"token_ids": [1], "max_tokens": -5}',
        b'{"token_ids": [100000000000000000000]}',
        b'{"token_ids": [-1]}',
        b'{"token_ids": []}',
        b'{"token_ids": [1], "n": 1000000}',
        b'{"token_ids": [1], "logit_bias": {"99999": 1}}',
        b'{"token_ids": [1], "response_format": {"type": "json_schema"}}',
        b"\xff\xfe",
        json.dumps({"token_ids": [1] * 60_000}).encode(),
        b" " * 300_000,
    ]
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
        answer = await http.post("/generate", content=rng.choice(bodies))
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
        assert answer.json()["error"]["message"]


async def floods(served, rng):
    """More at once than the queue takes: each gets its answer or a 429, at once."""

    async def one():
        reader, writer = await served.connect()
        writer.write(request_of(prompt_of(10, rng), 20))
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        status = int(head.split()[1])
        assert status == 200 or (status == 429 and b"retry-after: " in head.lower()), head
        return status

    return await asyncio.gather(*(one() for _ in range(3 * MAX_QUEUED)))


BAD = [drips_a_head, drips_a_body, stops_reading, sends_rubbish, sends_what_cannot_be]
GONE = [vanishes_before_the_answer, vanishes_amid_a_stream]


async def test_bad_clients_harm_only_themselves(served):
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    bad = [kind(served, rng) for kind in BAD for _ in range(6)] + [kind(served, rng) for kind in GONE * 60]
    rng.shuffle(bad)

    async def in_turn(clients):
        for client in clients:
            await client

    lanes = [in_turn(bad[lane::10]) for lane in range(10)]
    await asyncio.gather(*(good_client(served, seed + i) for i in range(GOOD_CLIENTS)), *lanes)
    assert await served.at_rest() == [0, 0]


async def test_a_flood_is_answered_whole(served):
    statuses = await floods(served, random.Random(0))
    assert {200, 429} == set(statuses)
    assert statuses.count(200) >= MAX_QUEUED
    assert await served.at_rest() == [0, 0]


async def test_hundreds_of_hang_ups_leave_no_memory(served):
    """Objects of requests, counted; process memory is the soak's business."""
    rng = random.Random(0)

    async def wave():
        await asyncio.gather(*(vanishes_amid_a_stream(served, rng) for _ in range(20)))
        await served.at_rest()
        gc.collect()
        return len(gc.get_objects())

    for _ in range(3):
        await wave()
    before = await wave()
    for _ in range(10):
        after = await wave()
    assert after - before < 500, f"{after - before} more objects after 200 hang-ups"
