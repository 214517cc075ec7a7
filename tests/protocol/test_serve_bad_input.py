"""What strangers send: each mistake is refused by status, code and the name of the field."""

import asyncio
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mortice.serve.options import ServeOptions
from mortice.specs.deployment import Admission

CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"
USER = [{"role": "user", "content": "Hi"}]

RAW = [
    (b"", 400, None, "invalid_json"),
    (b"{", 400, None, "invalid_json"),
    (b'{"prompt": "a"} x', 400, None, "invalid_json"),
    (b'{"prompt": "\xff"}', 400, None, "invalid_json"),
    (b'{"prompt": "\\ud800"}', 400, None, "invalid_json"),
    (b'{"prompt": "a", "temperature": NaN}', 400, None, "invalid_json"),
    (b'{"prompt": "a", "temperature": 1e999}', 400, None, "invalid_json"),
    (b'{"prompt": "a", "top_k": 1' + b"0" * 5000 + b"}", 400, None, None),
    (b"[" * 100_000, 400, None, "invalid_json"),
    (b'{"prompt": "a", "logit_bias": ' + b'{"a":' * 70 + b"1" + b"}" * 71, 400, None, "invalid_json"),
    (b"[]", 400, None, None),
    (b'"text"', 400, None, None),
]
COMPLETIONS = [
    ({}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [300]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": "a" * 3000}, "prompt"),
    ({"prompt": "a", "max_tokens": 5000}, "max_tokens"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "temperature": 2.5}, "temperature"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "n": 17}, "n"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"prompt": "a", "stop": ""}, "stop"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"999": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "seed": 1 << 70}, "seed"),
    ({"prompt": "a", "min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    ({"prompt": "a", "bad_words": [""]}, "bad_words"),
    ({"prompt": "a", "stream_options": {"loud": True}}, "stream_options.loud"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "best_of": 3}, "best_of"),
    ({"prompt": "a", "mystery": 1}, "mystery"),
    ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format.type"),
    ({"prompt": "a", "guided_regex": "("}, "guided_regex"),
]
CHATS = [
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{"content": "no role"}]}, "messages[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": USER, "top_logprobs": 3}, "top_logprobs"),
    ({"messages": USER, "functions": [{"name": "f"}]}, "functions"),
    ({"messages": USER, "tool_choice": "required"}, "tool_choice"),
    ({"messages": USER, "tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"messages": USER, "audio": {"voice": "x"}}, "audio"),
]


def error_of(answer: httpx.Response) -> dict:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


async def test_bad_bodies(server):
    for body, status, param, code in RAW:
        answer = await server.http.post(COMPLETE, content=body)
        error = error_of(answer)
        assert answer.status_code == status, body[:60]
        assert error["code"] == code or code is None, body[:60]
        assert param is None or error["param"] == param
    assert server.cluster.requests == []


async def test_malformed_json_names_the_place(server):
    answer = await server.http.post(COMPLETE, content=b'{"prompt": tru}')
    assert "byte" in error_of(answer)["message"]


async def test_bad_completions_name_the_field(server):
    for body, param in COMPLETIONS:
        answer = await server.http.post(COMPLETE, json=body)
        assert (answer.status_code, error_of(answer)["param"]) == (400, param), body
    assert server.cluster.requests == []
    assert server.edge.num_in_flight == 0


async def test_bad_chats_name_the_field(server):
    for body, param in CHATS:
        answer = await server.http.post(CHAT, json=body)
        assert (answer.status_code, error_of(answer)["param"]) == (400, param), body
    assert server.cluster.requests == []


async def test_null_is_absent_and_neutral_is_accepted(server):
    for extra in ({"temperature": None}, {"suffix": None}, {"best_of": 1}, {"user": "me"}, {"n": None}):
        answer = await server.http.post(COMPLETE, json={"prompt": "a", **extra})
        assert answer.status_code == 200, answer.text


async def test_unknown_routes_and_methods(server):
    http = server.http
    assert error_of(await http.get("/nothing"))["code"] == "not_found"
    answer = await http.post("/v1/embeddings", json={"input": "x"})
    assert (answer.status_code, error_of(answer)["code"]) == (404, "unsupported_route")
    answer = await http.get(CHAT)
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")


async def test_bodies_have_a_size(serve):
    limits = Admission(max_body_bytes=1000)
    async with serve(options=ServeOptions(admission=limits)) as server:
        answer = await server.http.post(COMPLETE, json={"prompt": "a" * 2000})
        assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")

        async def parts():
            for _ in range(20):
                yield b"a" * 100

        answer = await server.http.post(COMPLETE, content=parts())
        assert answer.status_code == 413


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
    ],
    ids=["head", "body"],
)
async def test_dawdlers_are_sent_away(serve, sent):
    limits = Admission(header_timeout_s=0.1, body_timeout_s=0.1)
    async with serve(options=ServeOptions(admission=limits)) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(sent)
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")  # and the connection is closed
        writer.close()


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
names = st.sampled_from(
    ["prompt", "messages", "tools", "stop", "n", "logit_bias", "response_format", "temperature", "stream"]
)


async def test_no_body_is_our_fault(server):
    """Hypothesis draws the bodies; they are sent over one loop, which an inner test could not await."""
    drawn: list[tuple[dict, str]] = []

    @settings(max_examples=80, deadline=None, database=None)
    @given(
        st.dictionaries(names | st.text(max_size=10), json_values, max_size=5),
        st.sampled_from([CHAT, COMPLETE]),
    )
    def draw(body, path):
        drawn.append((body, path))

    draw()
    for body, path in drawn:
        answer = await server.http.post(path, content=json.dumps(body).encode())
        assert answer.status_code < 500, (path, body)
    assert (await server.http.get("/health")).status_code == 200
