"""Bodies are checked once, quickly, and their mistakes explained."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mortice.serve.api import ChatRequest, CompletionRequest
from mortice.serve.body import MAX_DEPTH, parse
from mortice.serve.json_text import as_json, quoted
from mortice.specs.errors import RequestError


def refusal(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as error:
        parse(body, CompletionRequest, "completions")
    return error.value


def test_a_good_body():
    assert parse(b'{"prompt": "a", "n": 2}', CompletionRequest, "completions").n == 2


def test_refused_fields_are_told_from_unknown_ones():
    assert refusal(b'{"prompt": "a", "suffix": "b"}').code == "unsupported_parameter"
    assert refusal(b'{"prompt": "a", "sufix": "b"}').code == "unknown_parameter"


def test_refused_fields_that_ask_for_nothing_are_accepted_beside_a_checked_rest():
    assert parse(b'{"prompt": "a", "suffix": null, "best_of": 1}', CompletionRequest, "completions")
    assert refusal(b'{"prompt": "a", "best_of": 1, "n": "x"}').param == "n"


def test_nested_places_are_paths():
    assert refusal(b'{"prompt": "a", "stream_options": {"x": 1}}').param == "stream_options.x"
    assert refusal(b'{"prompt": "a", "stop": ["a", 5]}').param == "stop[1]"


def test_depth_is_bounded_but_brackets_in_strings_are_not_depth():
    deep = b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1)
    assert "nested" in refusal(b'{"prompt": ' + deep + b"}").message
    text = json.dumps({"prompt": "[{" * 1000 + '"\\'}).encode()
    assert len(parse(text, CompletionRequest, "completions").prompt) == 2002


def test_half_a_character_is_refused_with_its_place():
    error = refusal(b'{"prompt": "\\ud800"}')
    assert error.code == "invalid_json"
    assert "12" in error.message


def refused_for(data: bytes) -> str | None:
    try:
        parse(data, ChatRequest, "chat")
    except RequestError as error:
        return error.message
    return None


@given(st.binary(max_size=60))
def test_any_bytes_are_a_body_or_a_request_error(data):
    assert refused_for(data) != ""


@given(st.text())
def test_what_goes_out_is_ascii_and_the_same(text):
    for data in (as_json({"a": text}), f'{{"a":{quoted(text)}}}'.encode()):
        assert data.isascii()
        assert json.loads(data) == {"a": text}
    assert msgspec.json.decode(as_json([text])) == [text]
