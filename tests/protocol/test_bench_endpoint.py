"""The client against scripted servers: what it measures, and every way in which an answer can fail."""

import asyncio
import socket

import pytest

from mortice.bench.endpoint import Endpoint
from mortice.bench.http import ExchangeFailed
from mortice.bench.scripted import Script, ScriptedServer
from mortice.bench.timeline import Timeline
from mortice.specs.errors import RequestError


async def ask(base_url, *, api="completions", timeout_s=5.0, **fields):
    endpoint = Endpoint(base_url, "scripted", api=api, timeout_s=timeout_s)
    timeline = Timeline(index=0, prompt_len=3, output_len=6)
    asked = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 6} | fields
    await endpoint.stream(endpoint.body("one two three", asked), timeline)
    endpoint.close()
    return timeline


async def serve_bytes(*pieces):
    """A server that reads one request, writes these pieces with a breath between them, and hangs up."""

    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


@pytest.mark.parametrize("api", ["completions", "chat"])
async def test_a_good_answer(api):
    async with ScriptedServer() as server:
        timeline = await ask(server.base_url, api=api)
    assert timeline.ok
    assert timeline.usage_tokens == timeline.num_tokens == 6
    assert timeline.prompt_tokens == (6 if api == "chat" else 3)
    assert timeline.finish_reason == "length"
    assert timeline.sent_s < timeline.chunk_s[0] <= timeline.chunk_s[-1] <= timeline.ended_s
    assert len(timeline.chunk_s) == 6


async def test_chunks_of_three_tokens():
    async with ScriptedServer(script=lambda i, body: Script(tokens_per_chunk=3)) as server:
        timeline = await ask(server.base_url)
    assert timeline.tokens_by_chunk() == [3, 3]
    assert timeline.num_tokens == 6


@pytest.mark.parametrize(
    ("script", "kind", "detail"),
    [
        (Script(status=429, message="queue full"), "status 429", "queue full"),
        (Script(status=500), "status 500", "scripted refusal"),
        (Script(ending="error event", stop_after=2, message="worker lost"), "error event", "worker lost"),
        (Script(ending="cut", stop_after=2), "truncated", "middle"),
        (Script(ending="no done", stop_after=2), "truncated", "without a finish reason"),
        (Script(ending="close"), "closed", "before an answer"),
        (Script(first_s=30.0), "timeout", "0.2 s"),
        (Script(text=""), "no content", "no text"),
    ],
)
async def test_every_failure_has_its_kind(script, kind, detail):
    async with ScriptedServer(script=lambda i, body: script) as server:
        timeline = await ask(server.base_url, timeout_s=0.2 if script.first_s else 5.0)
    assert (timeline.ok, timeline.failure) == (False, kind)
    assert detail in timeline.detail
    assert timeline.ended_s > 0


async def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    timeline = await ask(f"http://127.0.0.1:{port}/v1")
    assert timeline.failure == "refused"
    assert str(port) in timeline.detail


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([b"SSH-2.0-OpenSSH_9.6\r\n"], "protocol"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\ndata: {not json}\n\n\n\n"], "protocol"),
        ([b"HTTP/1.1 200 OK\r\nContent-Le"], "truncated"),
        ([b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops"], "status 502"),
    ],
)
async def test_answers_that_are_none(pieces, kind):
    server, base_url = await serve_bytes(*pieces)
    async with server:
        assert (await ask(base_url)).failure == kind


EVENTS = (
    b'data: {"choices":[{"index":0,"text":"a","token_ids":[7,8]}]}\n\n',
    b'data: {"choices":[{"index":0,"text":"","token_ids":[9]}]}\n\n',
    b'data: {"choices":[{"index":0,"text":"b","token_ids":[10],"finish_reason":"length"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,'
    b'"prompt_tokens_details":{"cached_tokens":2}}}\n\ndata: [DONE]\n\n',
)


async def test_a_body_that_ends_with_the_connection_and_counts_its_tokens():
    server, base_url = await serve_bytes(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", *EVENTS)
    async with server:
        timeline = await ask(base_url)
    assert timeline.ok
    assert timeline.tokens_by_chunk() == [2, 2]
    assert timeline.cached_tokens == 2


async def test_a_missing_last_chunk_after_done_is_forgiven():
    body = b"".join(EVENTS)
    server, base_url = await serve_bytes(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body)
    )
    async with server:
        assert (await ask(base_url)).ok


async def test_an_interim_answer_is_passed_over():
    server, base_url = await serve_bytes(
        b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", *EVENTS
    )
    async with server:
        assert (await ask(base_url)).ok


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_reasoning_is_content(name):
    event = b'data: {"choices":[{"delta":{"%s":"hm"},"finish_reason":"stop"}]}\n\n' % name.encode()
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    server, base_url = await serve_bytes(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", role, event)
    async with server:
        timeline = await ask(base_url, api="chat")
    assert timeline.ok
    assert timeline.chunk_chars == [2]


async def test_connections_are_kept_and_a_stale_one_is_replaced():
    async with ScriptedServer() as server:
        endpoint = Endpoint(server.base_url, "scripted")
        for _ in range(2):
            assert (await endpoint.json("GET", "/v1/models"))[0] == 200
        idle = endpoint.client._idle
        assert len(idle) == 1
        kept = idle[0]
        assert (await endpoint.json("GET", "/v1/models"))[0] == 200
        assert endpoint.client._idle == [kept]
        kept._transport.abort()
        assert (await endpoint.json("GET", "/v1/models"))[0] == 200
        assert endpoint.client._idle != [kept]
        endpoint.close()


async def test_a_cancelled_answer_hangs_up():
    async with ScriptedServer(script=lambda i, body: Script(gap_s=0.01)) as server:
        task = asyncio.create_task(ask(server.base_url, max_tokens=10_000))
        while not server.bodies:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            while not server.closed_early:
                await asyncio.sleep(0.01)
    assert server.closed_early == 1


async def test_the_key_travels_and_the_host_is_named():
    seen = []

    async def talk(reader, writer):
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", "m", api_key="sk-1")
        assert await endpoint.json("GET", "/v1/models") == (200, {})
        endpoint.close()
    assert b"Authorization: Bearer sk-1\r\n" in seen[0]
    assert f"Host: 127.0.0.1:{port}\r\n".encode() in seen[0]


@pytest.mark.parametrize("url", ["ftp://x/v1", "127.0.0.1:80", "http://", "http://x:port/v1"])
def test_a_bad_url_names_its_option(url):
    with pytest.raises(RequestError) as raised:
        Endpoint(url, "m")
    assert raised.value.param == "--base-url"


def test_a_key_with_a_line_break_is_refused():
    with pytest.raises(RequestError, match="no header can carry"):
        Endpoint("http://x/v1", "m", api_key="a\r\nX: y")


async def test_a_failed_exchange_says_why():
    with pytest.raises(ExchangeFailed, match="cannot connect"):
        await Endpoint("http://127.0.0.1:1/v1", "m").json("GET", "/v1/models")
