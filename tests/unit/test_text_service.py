"""The text worker: it answers, it may be killed, and no call takes another down."""

import asyncio
import os
import signal

import pytest

from mortice.specs.errors import Overloaded, RequestError, Unavailable
from mortice.text.calls import ChatInput, GrammarInput
from mortice.text.fake import CHATML, write_byte_model
from mortice.text.lane import Lane
from mortice.text.service import MAX_DEPTH, MAX_GRAMMAR_BYTES, MAX_TEXT_BYTES, TextService

# The sandbox bounds one range, so an endless template nests two.
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a * b %}{% endfor %}{% endfor %}"
TEMPLATE = "{% if spin %}" + ENDLESS + "{% endif %}{% if eat %}{{ 'x' * 3000000000 }}{% endif %}" + CHATML
HI = [{"role": "user", "content": "hi"}]
SPIN = ChatInput(messages=HI, chat_template_kwargs={"spin": True})


@pytest.fixture
async def service(tmp_path):
    one = TextService(write_byte_model(tmp_path, TEMPLATE), text_limit_s=0.5, grammar_limit_s=5.0)
    await one.start()
    yield one
    await one.stop()


async def refused(call):
    with pytest.raises(RequestError) as caught:
        await call
    return caught.value


async def test_it_encodes_renders_and_decodes(service):
    assert await service.encode("é") == [*"é".encode()]
    assert await service.encode_many(["a", ""]) == [[97], []]
    ids = await service.render_chat(ChatInput(messages=HI))
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert await service.decode(ids, skip_special_tokens=False) == text
    assert ids[0] == service.special_texts["<|im_start|>"] == 256
    assert (service.vocab_size, service.eos_token_ids, service.tool_format) == (258, [257], "hermes")
    assert service.reasoning_of(ids) == "none"


async def test_it_compiles_grammars_once(service):
    request = GrammarInput(response_format={"type": "json_object"})
    grammar = await service.compile_grammar(request)
    assert grammar is not None
    os.kill(service._grammar.pid, signal.SIGKILL)  # the answer is kept: no worker is asked
    assert await service.compile_grammar(request) == grammar
    assert service._grammar.num_starts == 1
    assert await service.compile_grammar(GrammarInput()) is None


async def test_mistakes_come_back_with_their_field(service):
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "foo"}}}
    for _ in range(2):
        assert (
            await refused(service.compile_grammar(GrammarInput(response_format=schema)))
        ).param == "response_format"
    image = [{"role": "user", "content": [{"type": "image_url"}]}]
    assert (
        await refused(service.render_chat(ChatInput(messages=image)))
    ).param == "messages[0].content[0].type"


async def test_an_endless_call_ends_alone(service):
    calls = [service.render_chat(SPIN), *(service.encode(str(i)) for i in range(20))]
    slow, *others = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(slow, RequestError)
    assert slow.code == "text_timeout"
    assert others == [[*str(i).encode()] for i in range(20)]
    assert service._text.num_starts == 2


async def test_a_greedy_call_ends_alone(service):
    eat = ChatInput(messages=HI, chat_template_kwargs={"eat": True})
    greedy, other = await asyncio.gather(
        service.render_chat(eat), service.encode("a"), return_exceptions=True
    )
    assert isinstance(greedy, RequestError)
    assert greedy.code == "text_too_complex"
    assert other == [97]


async def test_a_schema_that_takes_too_long_ends_alone(tmp_path):
    service = TextService(write_byte_model(tmp_path), grammar_limit_s=0.1)
    await service.start()
    bomb = {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(6000)}}
    slow, other, text = await asyncio.gather(
        service.compile_grammar(GrammarInput(guided_json=bomb)),
        service.compile_grammar(GrammarInput(guided_regex="a")),
        service.encode("a"),
        return_exceptions=True,
    )
    assert isinstance(slow, RequestError)
    assert (slow.code, slow.param) == ("grammar_timeout", "guided_json")
    assert isinstance(other, str)
    assert text == [97]
    await service.stop()


async def test_a_worker_out_of_memory_ends_one_call(tmp_path):
    service = TextService(write_byte_model(tmp_path), memory_bytes=32 << 20)
    await service.start()
    error = await refused(service.encode("x" * 3_000_000))
    assert error.code == "text_too_complex"
    assert await service.encode("a") == [97]
    await service.stop()


async def test_a_worker_killed_from_outside_is_not_noticed(service):
    os.kill(service._text.pid, signal.SIGKILL)
    assert await service.encode("a") == [97]
    assert service._text.num_starts == 2


async def test_a_caller_who_leaves_does_not_shift_the_answers(service):
    leaving = asyncio.create_task(service.render_chat(SPIN))
    await asyncio.sleep(0.05)
    leaving.cancel()
    assert await service.encode("a") == [97]
    assert leaving.cancelled()


async def test_a_caller_who_leaves_costs_no_worker(tmp_path):
    service = TextService(write_byte_model(tmp_path), text_limit_s=60.0)
    await service.start()
    leaving = asyncio.create_task(service.encode("x" * 1_000_000))
    await asyncio.sleep(0.05)
    leaving.cancel()
    assert await service.encode("a") == [97]
    assert leaving.cancelled()
    assert service._text.num_starts == 1
    await service.stop()


async def test_limits_are_checked_before_the_worker_is_asked(service):
    deep = {}
    for _ in range(MAX_DEPTH + 1):
        deep = {"items": deep}
    assert (await refused(service.compile_grammar(GrammarInput(guided_json=deep)))).param == "guided_json"
    assert (await refused(service.render_chat(ChatInput(messages=[deep])))).param == "messages"
    wide = GrammarInput(guided_choice=["x" * MAX_GRAMMAR_BYTES])
    assert (await refused(service.compile_grammar(wide))).param == "guided_choice"
    assert (await refused(service.encode("x" * MAX_TEXT_BYTES))).param == "prompt"
    assert service._grammar.num_starts == 0


async def test_lone_surrogates_are_refused(service):
    assert (await refused(service.encode("a\ud800"))).param == "prompt"
    chat = ChatInput(messages=[{"role": "user", "content": "\udc00"}])
    assert (await refused(service.render_chat(chat))).param == "messages"
    assert (
        await refused(service.compile_grammar(GrammarInput(guided_regex="\ud800")))
    ).param == "guided_regex"
    huge = GrammarInput(guided_json={"minimum": 1 << 70})
    assert (await refused(service.compile_grammar(huge))).param == "guided_json"


async def test_a_stream_shows_marks_of_tool_calls(service):
    stream = service.stream(keep=["<|im_end|>", "no such token"])
    assert stream.push([97, 256, 257]) == "a<|im_end|>"


async def test_a_model_that_cannot_be_read(tmp_path):
    assert (await refused(TextService(tmp_path).start())).param == "model"


async def test_the_queue_is_bounded(tmp_path):
    lane = Lane("text", str(write_byte_model(tmp_path)), limit_s=1.0, memory_bytes=1 << 28, max_waiting=0)
    with pytest.raises(Overloaded):
        await lane.call(b"")


async def test_stop_ends_the_call_under_way(tmp_path):
    service = TextService(write_byte_model(tmp_path, TEMPLATE))
    await service.start()
    pid = service._text.pid
    slow = asyncio.create_task(service.render_chat(SPIN))
    await asyncio.sleep(0.05)
    await service.stop()
    with pytest.raises(Unavailable):
        await slow
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(Unavailable):
        await service.encode("a")
    await service.stop()
