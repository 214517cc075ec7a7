"""Tool calls found in streamed text, in three forms, whatever the cuts; nothing is dropped."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mortice.text.tools import CallArguments, CallStart, Content, ToolCallParser, tool_format_of

CALL = '<tool_call>\n{"name": "f", "arguments": {"c": "P </tool_call> {"}}\n</tool_call>'
F = ["f", '{"c": "P </tool_call> {"}']
CASES = [
    ("hermes", "hi", "hi", []),
    ("hermes", "", "", []),
    ("hermes", "  \n", "  \n", []),
    ("hermes", "a < b <tool", "a < b <tool", []),
    ("hermes", "hi " + CALL, "hi", [F]),
    ("hermes", CALL + "\n" + CALL + "\n", "", [F, F]),
    ("hermes", CALL + " bye", " bye", [F]),
    ("hermes", "<tool_call>nope</tool_call> x", "<tool_call>nope</tool_call> x", []),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "g"}</tool_call>\nz', "\nz", [["g", '{"a": 1}']]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [["f", '{"a": 1}']]),
    ("hermes", '<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": ', "", [["f", '{"a": ']]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {}} <tool_call>{"name": "g"}',
        "",
        [["f", "{}"], ["g", "{}"]],
    ),
    ("hermes", "<tool_call>{'name': 'f'}", "<tool_call>{'name': 'f'}", []),
    ("hermes", "<tool_call>", "<tool_call>", []),
    ("llama3", '{"name": "f", "parameters": {"a": 1}}', "", [["f", '{"a": 1}']]),
    (
        "llama3",
        '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
        "",
        [["f", "{}"], ["g", "{}"]],
    ),
    ("llama3", 'hello {"name"', 'hello {"name"', []),
    ("llama3", '{"x": 1} foo', '{"x": 1} foo', []),
    ("llama3", '{"name": "f", "parameters": {}} tail', " tail", [["f", "{}"]]),
    ("llama3", '{"name": "f", "par', '{"name": "f", "par', []),
    ("llama3", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    ("llama3", "  ", "  ", []),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": [1]}}, {"name": "g", "arguments": {}}]',
        "",
        [["f", '{"a": [1]}'], ["g", "{}"]],
    ),
    ("mistral", 'hi [TOOL_CALLS] [{"name": "f", "arguments": {}}]', "hi", [["f", "{}"]]),
    (
        "mistral",
        '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{"b": {}}',
        "",
        [["f", '{"a": 1}'], ["g", '{"b": {}}']],
    ),
    ("mistral", "[TOOL_CALLS]x y z {", "[TOOL_CALLS]x y z {", []),
    ("mistral", "[TOOL_CALLS][1]", "[TOOL_CALLS][1]", []),
    ("mistral", "a [TOOL_CA", "a [TOOL_CA", []),
]


def parse(form, text, cuts=()):
    """Content and [name, arguments] of each call; checks the order of events on the way."""
    parser, events, at = ToolCallParser(form), [], 0
    for size in [*cuts, len(text)]:
        events += parser.feed(text[at : at + size])
        at += size
    events += parser.finish()
    calls = []
    for event in events:
        if isinstance(event, CallStart):
            assert event.index == len(calls)
            calls.append([event.name, ""])
        elif isinstance(event, CallArguments):
            assert event.index == len(calls) - 1
            calls[event.index][1] += event.delta
    ids = [event.id for event in events if isinstance(event, CallStart)]
    assert len(set(ids)) == len(ids) == parser.num_calls
    return "".join(event.text for event in events if isinstance(event, Content)), calls


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
def test_forms(form, text, content, calls):
    assert parse(form, text) == (content, calls)


@given(st.sampled_from(CASES), st.lists(st.integers(0, 4), max_size=80))
def test_cuts_change_nothing(case, cuts):
    form, text, content, calls = case
    assert parse(form, text, cuts) == (content, calls)


@given(
    st.sampled_from(["hermes", "llama3", "mistral"]),
    st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                '{"name": "f"',
                ', "arguments": ',
                '"parameters"',
                "{",
                "}",
                ":",
                '"',
                "\\",
                "[TOOL_CALLS]",
                "[ARGS]",
                "[",
                "]",
                ";",
                "<|python_tag|>",
                " ",
                "x",
            ]
        ),
        max_size=30,
    ),
    st.lists(st.integers(0, 9), max_size=40),
)
def test_any_text_is_parsed_alike_at_any_cuts(form, pieces, cuts):
    text = "".join(pieces)
    assert parse(form, text, cuts) == parse(form, text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=8,
    )
)
def test_arguments_come_through_as_written(value):
    arguments = json.dumps({"value": value})
    text = f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>'
    assert parse("hermes", text) == ("", [["f", arguments]])


def test_arguments_stream_before_the_call_is_over():
    parser = ToolCallParser("hermes")
    start, first = parser.feed('<tool_call>{"name": "f", "arguments": {"a": "lo')
    assert isinstance(start, CallStart)
    assert start.name == "f"
    assert start.id.startswith("call_")
    assert first == CallArguments(0, '{"a": "lo')
    assert parser.feed('ng"}') == [CallArguments(0, 'ng"}')]


def test_the_form_follows_the_template():
    assert tool_format_of("... <tool_call> ...") == "hermes"
    assert tool_format_of("... [TOOL_CALLS] ...") == "mistral"
    assert tool_format_of("... <|python_tag|> ...") == "llama3"
    assert tool_format_of("{{ messages }}") == tool_format_of(None) == "hermes"
