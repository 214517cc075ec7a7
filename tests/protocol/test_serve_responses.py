"""The Responses API by the OpenAI client: whole, streamed, stored, chained, in the background."""

import json

import openai
import pytest

from mortice.serve.options import ServeOptions
from mortice.serve.response_store import ResponseStore
from mortice.specs.errors import EngineError


@pytest.fixture
async def client(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        client.server = server
        yield client


async def test_create(client):
    response = await client.responses.create(
        model="fake", input="Hi", instructions="Be kind", metadata={"a": "b"}
    )
    assert response.status == "completed"
    assert response.output_text == "Hello, world"
    assert response.usage.output_tokens == 13
    assert response.metadata == {"a": "b"}
    prompt = bytes(t for t in client.server.cluster.requests[0].prompt_token_ids if t < 256).decode()
    assert prompt.startswith("system\nBe kind")


async def test_stream_tells_typed_events_in_order(client):
    events = [event async for event in await client.responses.create(model="fake", input="Hi", stream=True)]
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "Hello, world"
    assert events[-1].response.output_text == "Hello, world"
    assert events[-1].response.usage.output_tokens == 13


async def test_stream_helper(client):
    async with client.responses.stream(model="fake", input="Hi") as stream:
        final = await stream.get_final_response()
    assert final.output_text == "Hello, world"


async def test_a_conversation_goes_on_from_what_is_stored(client):
    first = await client.responses.create(model="fake", input="One")
    second = await client.responses.create(model="fake", input="Two", previous_response_id=first.id)
    prompt = bytes(t for t in client.server.cluster.requests[-1].prompt_token_ids if t < 256).decode()
    assert prompt == "user\nOneassistant\nHello, worlduser\nTwoassistant\n"
    fetched = await client.responses.retrieve(second.id)
    assert fetched.output_text == "Hello, world"
    items = await client.responses.input_items.list(second.id)
    assert len(items.data) == 3
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError) as error:
        await client.responses.create(model="fake", input="x", previous_response_id=first.id)
    assert error.value.param == "previous_response_id"


async def test_what_is_not_to_be_stored_is_not(client):
    response = await client.responses.create(model="fake", input="Hi", store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


async def test_cut_by_max_output_tokens(client):
    response = await client.responses.create(model="fake", input="Hi", max_output_tokens=4)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"


async def test_tool_calls_there_and_back(client):
    tool = {
        "type": "function",
        "name": "add",
        "parameters": {"type": "object", "properties": {}},
        "strict": False,
    }
    cluster = client.server.cluster
    cluster.script = lambda request, index: list(
        b'<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    )
    events = [
        event
        async for event in await client.responses.create(model="fake", input="Add", tools=[tool], stream=True)
    ]
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert json.loads(done.arguments) == {"a": 1}
    call = events[-1].response.output[-1]
    assert (call.type, call.name) == ("function_call", "add")
    cluster.script = lambda request, index: list(b"Two")
    answer = await client.responses.create(
        model="fake",
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "2"}],
        previous_response_id=events[-1].response.id,
        tools=[tool],
    )
    assert answer.output_text == "Two"


async def test_reasoning_is_an_item_of_its_own(client):
    client.server.cluster.script = lambda request, index: list(b"Hm.</think>Yes")
    kwargs = {"chat_template_kwargs": {"enable_thinking": True}}
    response = await client.responses.create(model="fake", input="Hi", extra_body=kwargs)
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == "Hm."
    assert response.output_text == "Yes"


async def test_background_runs_without_its_client(client):
    cluster = client.server.cluster
    cluster.pace_s = 0.005
    response = await client.responses.create(model="fake", input="Hi", background=True)
    assert response.status in ("queued", "in_progress")
    while response.status in ("queued", "in_progress"):
        response = await client.responses.retrieve(response.id)
    assert response.output_text == "Hello, world"
    assert client.server.edge.num_in_flight == 0


async def test_background_can_be_cancelled(client):
    cluster = client.server.cluster
    cluster.script = lambda request, index: [72] * request.sampling.max_tokens
    cluster.pace_s = 0.01
    response = await client.responses.create(model="fake", input="Hi", background=True)
    await client.server.until(lambda: cluster.num_in_flight() == 1)
    cancelled = await client.responses.cancel(response.id)
    assert cancelled.status == "cancelled"
    assert cluster.num_in_flight() == 0
    assert client.server.edge.num_in_flight == 0


async def test_failure_in_a_stream_is_an_event(client):
    client.server.cluster.fail_after = (3, EngineError("the worker is gone"))
    events = [event async for event in await client.responses.create(model="fake", input="Hi", stream=True)]
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message == "the worker is gone"


async def test_store_can_be_off(serve):
    async with serve(options=ServeOptions(store=None)) as server:
        answer = await server.http.post("/v1/responses", json={"input": "Hi"})
        assert answer.status_code == 200
        assert answer.json()["store"] is False
        assert (await server.http.get(f"/v1/responses/{answer.json()['id']}")).status_code == 404
        refused = await server.http.post("/v1/responses", json={"input": "Hi", "background": True})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "background"


async def test_a_lost_background_response_is_marked(tmp_path):
    path = str(tmp_path / "responses.sqlite")
    store = ResponseStore(path)
    await store.put({"id": "resp_1", "status": "in_progress"}, [])
    store.close()
    store = ResponseStore(path)
    response, _ = await store.get("resp_1")
    store.close()
    assert response["status"] == "failed"
