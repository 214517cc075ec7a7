"""What the grammar of a request lets through, token by token, and what it refuses."""

import json
import re
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mortice.specs.errors import RequestError
from mortice.text.call_grammar import MAX_CALLS
from mortice.text.calls import GrammarInput
from mortice.text.fake import byte_text_model
from mortice.text.grammar import check_grammar, grammar_for, new_matcher
from mortice.text.load import TextModel
from mortice.text.stream import TextStream
from mortice.text.tools import CallArguments, CallStart, Content, ToolCallParser

MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>")
PARAMETERS = {"properties": {"c": {"type": "string"}}, "required": ["c"], "additionalProperties": False}
F = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
G = {"type": "function", "name": "g"}  # the flat form, no arguments
CALL_F = '<tool_call>\n{"name": "f", "arguments": {"c": "P"}}\n</tool_call>'
CALL_G = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


@cache
def model(marked):
    """With marks as single tokens, or spelled out."""
    return byte_text_model(added=MARKS if marked else ())


def accepts(text, marked=False, **fields):
    """Whether the whole text may be the whole answer."""
    one = model(marked)
    grammar = check_grammar(GrammarInput(**fields), one.llguidance_tokenizer(), one.grammar_tags)
    ids = one.encode(text, add_special_tokens=False)
    matcher = new_matcher(one.llguidance_tokenizer(), grammar)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def refused(**fields):
    with pytest.raises(RequestError) as caught:
        accepts("", **fields)
    return caught.value


def test_free_output_has_no_grammar():
    assert grammar_for(GrammarInput()) is None
    assert grammar_for(GrammarInput(response_format={"type": "text"})) is None
    assert grammar_for(GrammarInput(tools=[F], tool_choice="none")) is None


def test_json_has_one_form():
    assert accepts('{"a": 1}', response_format=FORMAT)
    assert not accepts('{"a":1}', response_format=FORMAT)
    assert not accepts('{"a":  1}', response_format=FORMAT)
    assert not accepts('{"a": "1"}', response_format=FORMAT)
    assert not accepts('{"a": 1', response_format=FORMAT)


def test_json_object():
    for text, good in (('{"x": [1, {"y": null}]}', True), ("[1]", False), ('"x"', False)):
        assert accepts(text, response_format={"type": "json_object"}) is good


def test_the_user_cannot_loosen_the_form():
    schema = {**SCHEMA, "x-guidance": {"whitespace_flexible": True}}
    assert not accepts('{"a":\n\n1}', guided_json=schema)


def test_structured_options():
    assert accepts("ab", guided_regex="a|b|ab")
    assert accepts("yes", guided_choice=["yes", "no"])
    assert not accepts("maybe", structured_outputs={"choice": ["yes", "no"]})
    assert accepts("1+2", guided_grammar='root ::= n ("+" n)*\nn ::= [0-9]+')
    assert accepts("1+2", structured_outputs={"grammar": 'start: N ("+" N)*\nN: /[0-9]+/'})
    assert accepts('{"a": 1}', guided_json=json.dumps(SCHEMA))
    assert accepts("{}", structured_outputs={"json_object": True})


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_choices_are_taken_literally(choices):
    tokenizer = model(False).llguidance_tokenizer()
    grammar = check_grammar(GrammarInput(guided_choice=choices), tokenizer, model(False).grammar_tags)
    for choice in choices:
        matcher, ids = new_matcher(tokenizer, grammar), [*choice.encode()]  # the fake's ids are bytes
        assert matcher.try_consume_tokens(ids) == len(ids)
        assert matcher.is_accepting()


def test_masks_are_as_wide_as_the_logits():
    one = TextModel(byte_text_model().tokenizer, eos_token_ids=[257], vocab_size=300)
    matcher = new_matcher(one.llguidance_tokenizer(), grammar_for(GrammarInput(guided_choice=["ab"])))
    assert len(matcher.compute_bitmask()) * 8 >= 300
    assert matcher.consume_tokens([97, 98])
    assert matcher.consume_token(257)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize(
    ("text", "auto", "required"),
    [
        ("hi", True, False),
        (CALL_F, True, True),
        (CALL_F + "\n" + CALL_G, True, True),
        ("hi " + CALL_F + " x" + CALL_G + " y", True, False),
        ('<tool_call>\n{"name": "f", "arguments": {"c": 1}}\n</tool_call>', False, False),
        ('<tool_call>\n{"name": "f", "arguments": "gaben"}\n</tool_call>', False, False),
        ('<tool_call>\n{"name": "h", "arguments": {}}\n</tool_call>', False, False),
        ("<tool_call>", False, False),
        ("<think>hm</think> <tool_response>", True, False),
        ("", True, False),
        ("a <|im_start|> b", True, False),
    ],
)
def test_tool_choice(marked, text, auto, required):
    assert accepts(text, marked, tools=[F, G]) is auto
    assert accepts(text, marked, tools=[F, G], tool_choice="required") is required


def test_named_tool_is_the_only_one_and_called_once():
    for choice in ({"type": "function", "function": {"name": "g"}}, {"type": "function", "name": "g"}):
        assert accepts(CALL_G, tools=[F, G], tool_choice=choice)
        assert not accepts(CALL_F, tools=[F, G], tool_choice=choice)
        assert not accepts(CALL_G + "\n" + CALL_G, tools=[F, G], tool_choice=choice)


def test_allowed_tools():
    chat = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [F]}}
    flat = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
    assert accepts(CALL_F, tools=[F, G], tool_choice=chat)
    assert not accepts(CALL_G, tools=[F, G], tool_choice=chat)
    assert not accepts("hi", tools=[F, G], tool_choice=chat)
    assert accepts("hi", tools=[F, G], tool_choice=flat)
    assert not accepts(CALL_G, tools=[F, G], tool_choice=flat)


def test_one_call_where_parallel_calls_are_off():
    two = CALL_F + "\n" + CALL_G
    for choice in ("auto", "required"):
        assert accepts(CALL_F, tools=[F, G], tool_choice=choice, parallel_tool_calls=False)
        assert not accepts(two, tools=[F, G], tool_choice=choice, parallel_tool_calls=False)


def test_an_answer_in_a_format_beside_tools():
    both = {"response_format": FORMAT, "tools": [F]}
    assert accepts('{"a": 1}', **both)
    assert accepts(CALL_F, **both)
    assert not accepts("hi", **both)
    assert not accepts('{"a": 1}', **both, tool_choice="required")


@pytest.mark.parametrize("marked", [False, True])
def test_reasoning_comes_before_the_constraint(marked):
    for answer, fields in (
        ('{"a": 1}', {"response_format": FORMAT}),
        (CALL_F, {"tools": [F], "tool_choice": "required"}),
    ):
        assert accepts(f"so {{it}} is\n</think>\n\n{answer}", marked, reasoning="open", **fields)
        assert not accepts(answer, marked, reasoning="open", **fields)
        assert accepts(f"<think>hm</think>{answer}", marked, reasoning="maybe", **fields)
        assert accepts(answer, marked, reasoning="maybe", **fields)
        assert not accepts(f"<think>hm</think>{answer}", marked, **fields)


def answer_format(schema, **more):
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema, **more}}}


def one_tool(**function):
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}]}


LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("response_format", answer_format({"type": "foo"})),
        ("response_format", answer_format({"$ref": "http://x/y"})),
        ("response_format", answer_format({"not": {}}, strict=True)),
        ("response_format", {"response_format": {"type": "json_schema"}}),
        ("response_format.type", {"response_format": {"type": "yaml"}}),
        ("guided_json", {"guided_json": LOOP}),
        ("guided_json", {"guided_json": "{"}),
        ("guided_json", {"guided_json": False}),
        ("guided_json", {"guided_json": {"enum": []}}),
        ("guided_regex", {"guided_regex": "("}),
        ("guided_regex", {"guided_regex": "a(?=b)"}),
        ("guided_choice", {"guided_choice": []}),
        ("guided_choice", {"guided_choice": [""]}),
        ("guided_choice", {"guided_regex": "a", "guided_choice": ["x"]}),
        ("guided_grammar", {"guided_grammar": "nonsense"}),
        ("guided_grammar", {"guided_grammar": "start: missing"}),
        ("structured_outputs.structural_tag", {"structured_outputs": {"structural_tag": "{}"}}),
        ("tools[0].function.parameters", one_tool(parameters={"properties": {"a": {"type": "foo"}}})),
        ("tools[0].function.parameters", one_tool(parameters={"type": "string"})),
        ("tools[1].parameters", {"tools": [F, {"type": "function", "name": "h", "parameters": 3}]}),
        ("tools[1].function.name", {"tools": [F, F]}),
        ("tools[0].name", {"tools": [{"type": "function"}]}),
        ("tools[0].type", {"tools": [{"type": "web_search"}]}),
        ("tool_choice", {"tools": [F], "tool_choice": {"type": "function", "function": {"name": "h"}}}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": [F], "tool_choice": "sometimes"}),
        ("tool_choice", {"tools": [F], "tool_choice": {"type": "allowed_tools", "tools": []}}),
    ],
)
def test_mistakes_are_named(param, fields):
    error = refused(**fields)
    assert error.param == param
    assert error.message


def test_keywords_that_cannot_be_enforced():
    """Refused where the schema must hold, passed over where the user asked for less."""
    odd = {"type": "object", "properties": {"a": {"type": "string", "format": "custom"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": odd}}
    assert refused(tools=[tool], tool_choice="required").param == "tools[0].function.parameters"
    assert accepts("hi", tools=[tool])
    loose = {"type": "json_schema", "json_schema": {"schema": odd}}
    assert accepts('{"a": "x"}', response_format=loose)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
TYPES = st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null", "foo", 3])
SCHEMAS = st.recursive(
    VALUES | st.fixed_dictionaries({"type": TYPES}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, max_size=2),
            "properties": st.dictionaries(st.text(max_size=4), inner, max_size=3),
            "required": st.lists(st.text(max_size=4), max_size=2) | VALUES,
            "items": inner,
            "prefixItems": st.lists(inner, max_size=2),
            "additionalProperties": inner,
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "(", ".*"]), inner, max_size=2),
            "anyOf": st.lists(inner, max_size=3),
            "allOf": st.lists(inner, max_size=3),
            "oneOf": st.lists(inner, max_size=3),
            "enum": st.lists(VALUES, max_size=3),
            "const": VALUES,
            "$ref": st.sampled_from(["#", "#/properties/a", "#/$defs/x", "http://[", ""]),
            "pattern": st.sampled_from(["a+", "(", "^x$", "\\d{2,5}", "(?=a)"]),
            "format": st.sampled_from(["date", "email", "uuid", "x"]),
            "minLength": st.integers(-5, 2**40),
            "maxItems": st.integers(-5, 2**40),
            "minimum": st.floats() | st.integers(-(2**63), 2**63 - 1),
            "multipleOf": st.floats(),
            "x-guidance": VALUES,
        },
    ),
    max_leaves=12,
)


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None
)
@given(SCHEMAS)
def test_any_schema_compiles_or_is_refused(schema):
    one = model(False)
    try:
        grammar = check_grammar(
            GrammarInput(guided_json=schema), one.llguidance_tokenizer(), one.grammar_tags
        )
    except RequestError as error:
        assert error.param == "guided_json"  # noqa: PT017 - either outcome is right
    else:
        assert grammar is None or json.loads(grammar)["grammars"]


BOUNDED = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Łódź", '"x"']},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 30}, "maxItems": 3},
        "exact": {"type": "boolean"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
    },
    "required": ["city", "code"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("marked", [False, True])
@given(st.randoms(use_true_random=False))
def test_a_random_writer_can_only_write_right_calls(marked, chance):
    """Whatever allowed token comes next, the calls parse and their arguments satisfy the parameters."""
    one = model(marked)
    tools = [{"type": "function", "function": {"name": "find", "parameters": BOUNDED}}, G]
    request = GrammarInput(tools=tools, tool_choice="required")
    matcher = new_matcher(one.llguidance_tokenizer(), grammar_for(request, one.grammar_tags))
    ids = []
    while 257 not in ids:
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [index for index in range(one.vocab_size) if mask >> index & 1]
        ids.append(chance.choice(allowed))
        assert matcher.consume_token(ids[-1])
        assert len(ids) < 5000
    parser = ToolCallParser("hermes")
    stream = TextStream(one.vocabulary)
    events = [event for index in ids for event in parser.feed(stream.push([index]))]
    events += parser.feed(stream.finish()) + parser.finish()
    assert 1 <= parser.num_calls <= MAX_CALLS
    names = [event.name for event in events if isinstance(event, CallStart)]
    assert not any(isinstance(event, Content) for event in events)
    for index, name in enumerate(names):
        text = "".join(e.delta for e in events if isinstance(e, CallArguments) and e.index == index)
        arguments = json.loads(text)
        if name == "g":
            assert arguments == {}
            continue
        assert name == "find"
        assert {"city", "code"} <= set(arguments) <= set(BOUNDED["properties"])
        assert arguments["city"] in BOUNDED["properties"]["city"]["enum"]
        assert re.fullmatch(r"[A-Z]{2}-\d{3}", arguments["code"])
        assert all(1 <= day <= 30 for day in arguments.get("days", []))
        assert len(arguments.get("days", [])) <= 3
        assert isinstance(arguments.get("exact", True), bool)
