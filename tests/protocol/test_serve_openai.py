"""The OpenAI client against a real server: what its users do, and the errors they are given."""

import json

import openai
import pytest

USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def client(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        client.server = server
        yield client


async def test_chat(client):
    answer = await client.chat.completions.create(model="fake", messages=USER)
    assert answer.choices[0].message.content == "Hello, world"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len("Hello, world") + 1
    assert answer.usage.prompt_tokens == len(client.server.cluster.requests[0].prompt_token_ids)
    assert answer.object == "chat.completion"


async def test_stream_with_usage(client):
    stream = await client.chat.completions.create(
        model="fake", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello, world"
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 13
    assert len({chunk.id for chunk in chunks}) == 1


async def test_n(client):
    answer = await client.chat.completions.create(model="fake", messages=USER, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    stream = await client.chat.completions.create(model="fake", messages=USER, n=3, stream=True)
    texts = {0: "", 1: "", 2: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == dict.fromkeys(range(3), "Hello, world")
    assert client.server.cluster.requests[0].n == 3


async def test_seed_is_passed_on_or_drawn(client):
    await client.chat.completions.create(model="fake", messages=USER, seed=7)
    await client.chat.completions.create(model="fake", messages=USER)
    await client.chat.completions.create(model="fake", messages=USER)
    seeds = [request.sampling.seed for request in client.server.cluster.requests]
    assert seeds[0] == 7
    assert seeds[1] != seeds[2]


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_logprobs(client, stream):
    given = {"model": "fake", "messages": USER, "logprobs": True, "top_logprobs": 2}
    if stream:
        chunks = [c async for c in await client.chat.completions.create(**given, stream=True)]
        content = [entry for c in chunks for entry in (c.choices[0].logprobs.content or [])]
    else:
        content = (await client.chat.completions.create(**given)).choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == "Hello, world"
    assert content[0].bytes == [ord("H")]
    assert [top.token for top in content[0].top_logprobs] == ["H", "I"]


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_string_ends_and_frees(client, stream):
    given = {"model": "fake", "messages": USER, "stop": ["wor"]}
    if stream:
        chunks = [c async for c in await client.chat.completions.create(**given, stream=True)]
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        answer = await client.chat.completions.create(**given)
        text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert answer.usage.completion_tokens == len("Hello, wor")
    assert text == "Hello, "
    assert finish == "stop"
    assert client.server.cluster.num_in_flight() == 0


async def test_max_tokens_is_length(client):
    answer = await client.chat.completions.create(model="fake", messages=USER, max_completion_tokens=5)
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "length"


async def test_completion_echo_and_logprobs(client):
    answer = await client.completions.create(
        model="fake", prompt="Say: ", echo=True, logprobs=1, max_tokens=5
    )
    choice = answer.choices[0]
    assert choice.text == "Say: Hello"
    assert choice.logprobs.tokens == list("Say: Hello")
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.text_offset == list(range(10))
    scored = await client.completions.create(
        model="fake", prompt="Say: ", echo=True, logprobs=1, max_tokens=0
    )
    assert scored.choices[0].text == "Say: "
    assert scored.usage.completion_tokens == 0
    assert len(scored.choices[0].logprobs.tokens) == 5


async def test_completion_batch_and_token_ids(client):
    create = client.completions.create
    batch = await create(model="fake", prompt=["a", "b"], n=2, max_tokens=3)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3]
    assert batch.usage.completion_tokens == 12
    ids = await create(model="fake", prompt=[72, 105], max_tokens=3)
    assert client.server.cluster.requests[-1].prompt_token_ids == [72, 105]
    assert ids.choices[0].text == "Hel"
    many = await create(model="fake", prompt=[[72], [105]], max_tokens=3, echo=True)
    assert [choice.text for choice in many.choices] == ["HHel", "iHel"]
    texts = {0: "", 1: ""}
    async for chunk in await create(model="fake", prompt=["a", "b"], max_tokens=3, stream=True, echo=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "aHel", 1: "bHel"}


async def test_json_schema(client):
    client.server.cluster.script = lambda request, index: list(b'{"name": "gaben"}')
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    answer = await client.chat.completions.create(model="fake", messages=USER, response_format=form)
    assert json.loads(answer.choices[0].message.content) == {"name": "gaben"}
    assert "name" in client.server.cluster.requests[0].sampling.grammar


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
CALLS = (
    'One moment.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
)


@pytest.mark.parametrize("pace", [1, 7, 1000])
async def test_tools(client, pace):
    client.server.cluster.script = lambda request, index: list(CALLS.encode())
    client.server.cluster.tokens_per_delta = pace
    create = client.chat.completions.create
    answer = await create(model="fake", messages=USER, tools=TOOLS)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content == "One moment."
    cities = [json.loads(call.function.arguments) for call in message.tool_calls]
    assert cities == [{"city": "Köln"}, {"city": "Oslo"}]
    names, arguments = {}, {}
    finish = None
    async for chunk in await create(model="fake", messages=USER, tools=TOOLS, stream=True):
        finish = chunk.choices[0].finish_reason or finish
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.id:
                assert call.index not in names
                assert call.function.arguments == ""
                names[call.index] = call.function.name
                arguments[call.index] = ""
            else:
                arguments[call.index] += call.function.arguments
    assert finish == "tool_calls"
    assert names == {0: "weather", 1: "weather"}
    assert [json.loads(arguments[i]) for i in (0, 1)] == cities


async def test_required_tool_has_a_grammar(client):
    client.server.cluster.script = lambda request, index: list(CALLS.split("\n", 1)[1].encode())
    answer = await client.chat.completions.create(
        model="fake", messages=USER, tools=TOOLS, tool_choice="required"
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"
    assert answer.choices[0].message.content is None
    assert "weather" in client.server.cluster.requests[0].sampling.grammar


async def test_reasoning(client):
    client.server.cluster.script = lambda request, index: list(b"Let me see.</think>\n\nYes")
    given = {
        "model": "fake",
        "messages": USER,
        "extra_body": {"chat_template_kwargs": {"enable_thinking": True}},
    }
    answer = await client.chat.completions.create(**given)
    assert answer.choices[0].message.content == "Yes"
    assert answer.choices[0].message.reasoning == "Let me see."
    assert answer.choices[0].message.reasoning_content == "Let me see."
    assert answer.usage.completion_tokens_details.reasoning_tokens > 5
    chunks = [c async for c in await client.chat.completions.create(**given, stream=True)]
    deltas = [c.choices[0].delta for c in chunks]
    assert "".join(getattr(d, "reasoning", None) or "" for d in deltas) == "Let me see."
    assert "".join(d.content or "" for d in deltas) == "Yes"


async def test_models(client):
    assert [model.id async for model in client.models.list()] == ["fake", "tuned"]
    assert (await client.models.retrieve("tuned")).parent == "fake"
    with pytest.raises(openai.NotFoundError) as error:
        await client.models.retrieve("nobody")
    assert error.value.code == "model_not_found"


async def test_adapter_by_model_name(client):
    answer = await client.chat.completions.create(model="tuned", messages=USER)
    assert answer.model == "tuned"
    assert client.server.cluster.requests[0].adapter == "tuned"


async def test_typed_errors(client):
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError):
        await create(model="nobody", messages=USER)
    with pytest.raises(openai.BadRequestError) as error:
        await create(model="fake", messages=USER, temperature=-1)
    assert error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as error:
        await create(model="fake", messages=[{"role": "user", "content": "x" * 3000}])
    assert error.value.code == "context_length_exceeded"
    assert error.value.param == "messages"
    with pytest.raises(openai.NotFoundError) as error:
        await client.embeddings.create(model="fake", input="x")
    assert "embeddings" in str(error.value)


async def test_client_that_leaves_a_stream_frees_its_request(client):
    cluster = client.server.cluster
    cluster.script = lambda request, index: [72] * request.sampling.max_tokens
    cluster.pace_s = 0.01
    stream = await client.chat.completions.create(model="fake", messages=USER, stream=True)
    await anext(aiter(stream))
    assert cluster.num_in_flight() == 1
    await stream.close()
    await client.server.until(lambda: cluster.num_in_flight() == 0)
    assert len(cluster.cancelled) == 1
