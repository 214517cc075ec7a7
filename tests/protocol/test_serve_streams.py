"""Streams as bytes on the wire, and what becomes of requests whose client hangs up, dawdles or is failed."""

import asyncio
import json

import pytest

from mortice.serve.options import ServeOptions
from mortice.specs.deployment import Admission
from mortice.specs.errors import EngineError, Overloaded, Unavailable

USER = [{"role": "user", "content": "Hi"}]
BODIES = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/generate": {"token_ids": [72, 105]},
}


def forever(request, index):
    return [72] * request.sampling.max_tokens


async def lines_of(server, path, body) -> list[str]:
    async with server.http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [line async for line in answer.aiter_lines()]


async def test_frames_are_data_and_blank_lines_of_ascii(server):
    text = "snow ☃, line\u2028separator, 😀"
    server.cluster.script = lambda request, index: list(text.encode())
    async with server.http.stream(
        "POST", "/v1/chat/completions", json={"messages": USER, "stream": True}
    ) as answer:
        raw = b"".join([part async for part in answer.aiter_bytes()])
    assert raw.isascii()
    frames = raw.split(b"\n\n")
    assert frames[-2:] == [b"data: [DONE]", b""]
    chunks = [json.loads(frame.removeprefix(b"data: ")) for frame in frames[:-2]]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == text
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(c["object"] == "chat.completion.chunk" for c in chunks)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_hanging_up_frees_the_request(server, path, stream):
    server.cluster.script = forever
    server.cluster.pace_s = 0.02
    body = json.dumps({**BODIES[path], "stream": stream}).encode()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await server.until(lambda: server.cluster.num_in_flight() == 1)
    if stream:
        await reader.readuntil(b"data: ")
    writer.close()
    await server.until(lambda: server.cluster.num_in_flight() == 0)
    assert len(server.cluster.cancelled) == 1
    await server.until(lambda: server.edge.num_in_flight == 0)
    assert server.edge.timelines == {}


async def test_hanging_up_is_felt_at_once_even_when_nothing_comes(server):
    server.cluster.first_token_s = 3600
    _, writer = await asyncio.open_connection(server.host, server.port)
    body = b'{"prompt": "Hi"}'
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await server.until(lambda: server.cluster.num_in_flight() == 1)
    writer.close()
    await server.until(lambda: server.cluster.num_in_flight() == 0)
    assert len(server.cluster.cancelled) == 1


@pytest.mark.parametrize("path", BODIES)
async def test_errors_before_the_first_byte_have_a_status(server, path):
    for error in (Overloaded("full", retry_after_s=3), Unavailable("gone"), EngineError("broken")):
        for stream in (False, True):
            server.cluster.failures.append(error)
            answer = await server.http.post(path, json={**BODIES[path], "stream": stream})
            assert answer.status_code == error.status
            assert answer.json()["error"]["type"] == error.kind
            if isinstance(error, Overloaded):
                assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate"])
async def test_errors_after_the_first_byte_are_data_and_done(server, path):
    server.cluster.fail_after = (3, EngineError("the worker is gone"))
    lines = [line for line in await lines_of(server, path, BODIES[path]) if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["message"] == "the worker is gone"
    server.cluster.fail_after = None
    server.cluster.error_delta_after = 2
    lines = [line for line in await lines_of(server, path, BODIES[path]) if line]
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["type"] == "server_error"
    assert b'finished_reason="error"' in server.edge.metrics.render()


async def test_a_fault_of_our_own_tells_nothing_but_that_it_happened(server):
    def broken(request, index):
        raise ZeroDivisionError("secret detail")

    server.cluster.script = broken
    answer = await server.http.post("/v1/completions", json={"prompt": "Hi"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert (await server.http.get("/health")).status_code == 200


async def test_silence_is_filled_with_comments(serve):
    async with serve(options=ServeOptions(keepalive_s=0.02), first_token_s=0.1) as server:
        lines = await lines_of(server, "/v1/completions", BODIES["/v1/completions"])
        assert lines[0] == ": keep-alive"
        server.cluster.first_token_s = 0.05
        server.cluster.fail_after = (0, EngineError("too late for a status"))
        lines = [
            line for line in await lines_of(server, "/v1/completions", BODIES["/v1/completions"]) if line
        ]
        assert lines[-1] == "data: [DONE]"
        assert "too late for a status" in lines[-2]


async def dawdle(server) -> asyncio.StreamWriter:
    """Ask for a long stream and read none of it."""
    server.cluster.script = forever
    _, writer = await asyncio.open_connection(server.host, server.port, limit=1)
    body = b'{"prompt": "Hi", "stream": true, "logprobs": 20}'
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return writer


async def test_a_reader_too_far_behind_loses_its_request(serve):
    options = ServeOptions(max_pending_tokens=500)
    async with serve(options=options, max_context=100_000, tokens_per_delta=100) as server:
        writer = await dawdle(server)
        await server.until(lambda: len(server.cluster.cancelled) == 1)
        await server.until(lambda: server.edge.num_in_flight == 0)
        assert b"slow_readers_aborted_total" in server.edge.metrics.render()
        writer.close()


async def test_a_reader_that_takes_nothing_loses_its_request(serve):
    options = ServeOptions(max_pending_tokens=1 << 30, stall_s=0.2)
    async with serve(options=options, max_context=100_000, tokens_per_delta=100, pace_s=0.001) as server:
        writer = await dawdle(server)
        await server.until(lambda: server.edge.num_in_flight == 1)
        await server.until(lambda: server.edge.num_in_flight == 0)
        assert server.cluster.num_in_flight() == 0
        writer.close()


async def test_time_limit_of_a_request(serve):
    options = ServeOptions(admission=Admission(request_timeout_s=0.1))
    async with serve(options=options, script=forever, pace_s=0.02) as server:
        answer = await server.http.post("/v1/completions", json={"prompt": "Hi"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
        lines = [line for line in await lines_of(server, "/v1/completions", {"prompt": "Hi"}) if line]
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "request_timeout"
        assert server.cluster.num_in_flight() == 0


async def test_multi_token_deltas_that_pass_a_stop_string_bill_only_what_is_shown(server):
    server.cluster.tokens_per_delta = 1000
    answer = await server.http.post(
        "/v1/completions", json={"prompt": "Hi", "stop": "lo", "return_token_ids": True}
    )
    choice = answer.json()["choices"][0]
    assert (choice["text"], choice["stop_reason"]) == ("Hel", "lo")
    assert bytes(choice["token_ids"]) == b"Hello"
    assert answer.json()["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("stream", [False, True])
async def test_a_sequence_that_met_its_stop_string_is_ended_and_its_sibling_goes_on(server, stream):
    server.cluster.script = lambda request, index: list(b"one STOP" if index else b"two and on and on")
    server.cluster.pace_s = 0.001
    body = {"prompt": "Hi", "n": 2, "stop": "STO", "stream": stream}
    if stream:
        lines = await lines_of(server, "/v1/completions", body)
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
    else:
        choices = (await server.http.post("/v1/completions", json=body)).json()["choices"]
    texts = ["".join(c["text"] for c in choices if c["index"] == i) for i in (0, 1)]
    assert texts == ["two and on and on", "one "]
    assert server.cluster.ended == [(server.cluster.requests[0].id, 1)]
    assert server.cluster.cancelled == []


async def test_generate_gives_tokens_versions_and_logprobs(server):
    body = {"token_ids": [72], "logprobs": 1, "prompt_logprobs": 0, "n": 2}
    answer = (await server.http.post("/generate", json=body)).json()
    first = answer["sequences"][0]
    assert bytes(first["token_ids"][:-1]) == b"Hello, world"
    assert (first["token_ids"][-1], first["stop_token_id"], first["finish_reason"]) == (256, 256, "stop")
    assert first["weight_versions"] == [1] * 13
    assert [entry["token_id"] for entry in first["logprobs"]] == first["token_ids"]
    assert first["prompt_logprobs"] == [None]
    lines = [line for line in await lines_of(server, "/generate", body) if line]
    tokens = {0: [], 1: []}
    for line in lines[:-1]:
        for sequence in json.loads(line.removeprefix("data: "))["sequences"]:
            tokens[sequence["index"]] += sequence["token_ids"]
    assert tokens == {0: first["token_ids"], 1: first["token_ids"]}


async def test_many_streams_at_once_keep_apart(server):
    server.cluster.script = lambda request, index: request.prompt_token_ids * 3

    async def one(number: int) -> bool:
        lines = await lines_of(server, "/v1/completions", {"prompt": f"<{number}>", "max_tokens": 12})
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        return text == (f"<{number}>" * 3)[:12]

    assert all(await asyncio.gather(*(one(number) for number in range(40))))
    assert server.edge.num_in_flight == 0
