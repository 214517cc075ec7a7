"""The OpenAI client for Python against the whole server on a real model."""

import json

import httpx
import openai
import pytest
from openai import OpenAI

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}
TOOLS = [WEATHER, CLOCK]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def client(real_server):
    with OpenAI(base_url=f"{real_server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
    real_server.wait_until_at_rest()


def ask(client, **more):
    more.setdefault("messages", CAPITAL)
    return client.chat.completions.create(model="smollm2", **({"max_tokens": 24, "temperature": 0} | more))


def test_chat(client):
    answer = ask(client)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
    assert 0 < usage.completion_tokens <= 24


def test_stream_says_the_same_and_counts(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    whole = ask(client)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].choices == []
    assert all(c.usage is None for c in chunks[:-1])
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_stream_helper_accumulates(client):
    given = {"model": "smollm2", "messages": CAPITAL, "max_tokens": 12, "temperature": 0}
    with client.chat.completions.stream(**given) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == ask(client, max_tokens=12).choices[0].message.content


def test_seed_repeats_and_n_differ(client):
    given = {"temperature": 1.0, "n": 3, "max_tokens": 12}
    first, again, other = (ask(client, seed=seed, **given) for seed in (5, 5, 6))
    texts = [[c.message.content for c in answer.choices] for answer in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 3
    assert [c.index for c in first.choices] == [0, 1, 2]


def test_n_streams_apart(client):
    given = {"temperature": 1.0, "n": 2, "max_tokens": 10, "seed": 5}
    texts = {0: "", 1: ""}
    for chunk in ask(client, stream=True, **given):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {c.index: c.message.content for c in ask(client, **given).choices}


def test_logprobs(client):
    answer = ask(client, logprobs=True, top_logprobs=3, max_tokens=8)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(e.bytes) for e in content).decode() == answer.choices[0].message.content
    for entry in content:  # greedy: the token that was taken is the likeliest
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert entry.token == entry.top_logprobs[0].token


def test_stop(client):
    whole = ask(client).choices[0].message.content
    cut = ask(client, stop=["Paris"])
    assert cut.choices[0].message.content == whole.partition("Paris")[0]
    assert cut.choices[0].finish_reason == "stop"
    parts = [c.choices[0].delta.content or "" for c in ask(client, stop=["Paris"], stream=True)]
    assert "".join(parts) == cut.choices[0].message.content


def test_completions_echo_batch_and_token_ids(client, real_server):
    def complete(prompt, **more):
        given = {"max_tokens": 6, "temperature": 0} | more
        return client.completions.create(model="smollm2", prompt=prompt, **given)

    texts = ["The capital of France is", "One, two, three,"]
    echoed = complete(texts[0], echo=True, logprobs=1)
    alone = [complete(text).choices[0].text for text in texts]
    assert echoed.choices[0].text == texts[0] + alone[0]
    logprobs = echoed.choices[0].logprobs
    assert "".join(logprobs.tokens) == echoed.choices[0].text
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert [c.text for c in complete(texts).choices] == alone
    ids = [
        httpx.post(f"{real_server.url}/tokenize", json={"prompt": text}).json()["tokens"] for text in texts
    ]
    assert complete(ids[0]).choices[0].text == alone[0]
    assert [c.text for c in complete(ids).choices] == alone
    streamed = {0: "", 1: ""}
    for chunk in complete(texts, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert [streamed[0], streamed[1]] == alone


def test_json_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = ask(client, response_format=form, max_tokens=60, temperature=1.0, seed=3)
    person = json.loads(answer.choices[0].message.content)
    assert set(person) == {"name", "age"}
    assert 0 <= person["age"] <= 120
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_tool_is_called(client, choice):
    question = [{"role": "user", "content": "How will the weather be in Paris for the next 3 days?"}]
    given = {"messages": question, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 80}
    given["parallel_tool_calls"] = False  # it would go on calling
    whole = ask(client, **given)
    call = whole.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    assert whole.choices[0].finish_reason == "tool_calls"
    pieces: dict[int, dict] = {}
    for chunk in ask(client, stream=True, **given):
        for delta in chunk.choices[0].delta.tool_calls or []:
            piece = pieces.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
            piece["id"] += delta.id or ""
            piece["name"] += delta.function.name or ""
            piece["arguments"] += delta.function.arguments or ""
    assert [(p["name"], p["arguments"]) for p in pieces.values()] == [
        (c.function.name, c.function.arguments) for c in whole.choices[0].message.tool_calls
    ]
    assert all(piece["id"] for piece in pieces.values())


def test_free_tools_stream_as_they_answer(client):
    given = {"tools": TOOLS, "tool_choice": "auto", "max_tokens": 40}
    whole = ask(client, **given).choices[0]
    text, names = "", []
    for chunk in ask(client, stream=True, **given):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        names += [call.function.name for call in delta.tool_calls or [] if call.id]
    assert text == (whole.message.content or "")
    assert names == [call.function.name for call in whole.message.tool_calls or []]


def test_a_tool_answer_goes_back_into_the_talk(client):
    call = {"id": "call_1", "type": "function"}
    call["function"] = {"name": "weather", "arguments": '{"city": "Paris", "days": 1}'}
    talk = [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain all day."},
    ]
    answer = ask(client, messages=talk, tools=TOOLS, tool_choice="none", max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None


def test_responses(client):
    question = "What is the capital of France? Answer in one sentence."
    given = {"model": "smollm2", "input": question, "temperature": 0, "max_output_tokens": 24}
    whole = client.responses.create(**given)
    assert "Paris" in whole.output_text
    assert whole.usage.output_tokens <= 24
    assert client.responses.retrieve(whole.id).output_text == whole.output_text
    events = list(client.responses.create(**given, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    follow = client.responses.create(
        model="smollm2", input="And of Italy?", previous_response_id=whole.id, max_output_tokens=16
    )
    assert follow.previous_response_id == whole.id
    assert follow.usage.input_tokens > whole.usage.input_tokens
    client.responses.delete(whole.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(whole.id)


def test_responses_json_and_tool(client):
    form = {"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}
    answer = client.responses.create(
        model="smollm2", input="Invent a person.", text=form, max_output_tokens=60
    )
    assert set(json.loads(answer.output_text)) == {"name", "age"}
    tool = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
    called = client.responses.create(
        model="smollm2",
        input="Weather in Oslo?",
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=80,
    )
    assert called.output[0].type == "function_call"
    assert set(json.loads(called.output[0].arguments)) == {"city", "days"}


def test_models(client):
    assert [model.id for model in client.models.list()] == ["smollm2"]
    assert client.models.retrieve("smollm2").id == "smollm2"


def test_typed_errors(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=CAPITAL)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        ask(client, temperature=7)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, messages=[{"role": "user", "content": "word " * 3000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as strange:
        ask(client, extra_body={"nonsense": 1})
    assert "nonsense" in str(strange.value)


@pytest.mark.parametrize("route", ["chat", "completions", "responses"])
def test_leaving_a_stream_frees_everything(client, real_server, route):
    long = {"model": "smollm2", "stream": True, "temperature": 0}
    endless = {"ignore_eos": True}
    if route == "chat":
        stream = client.chat.completions.create(
            messages=CAPITAL, max_tokens=1500, n=2, extra_body=endless, **long
        )
    elif route == "completions":
        stream = client.completions.create(prompt=["One", "Two"], max_tokens=1500, extra_body=endless, **long)
    else:
        stream = client.responses.create(input="Count.", max_output_tokens=1500, extra_body=endless, **long)
    for count, _ in enumerate(stream):
        if count == 4:
            break
    assert count == 4
    stream.close()
    real_server.wait_until_at_rest()
