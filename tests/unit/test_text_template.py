"""Chats become prompts: content parts, tools, continued messages, and refusals by name."""

import pytest

from mortice.specs.errors import RequestError
from mortice.text.calls import ChatInput
from mortice.text.fake import byte_text_model
from mortice.text.template import render_chat

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def render(messages, template=None, **fields):
    model = byte_text_model(template) if template else byte_text_model()
    return render_chat(model, ChatInput(messages=messages, **fields))


def refused(messages, template=None, **fields):
    with pytest.raises(RequestError) as caught:
        render(messages, template, **fields)
    return caught.value


def test_generation_prompt_is_an_option():
    assert render(HI) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render(HI, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render([{"role": "user", "content": parts}]) == render([{"role": "user", "content": "a\nb"}])


def test_other_parts_are_refused_by_name():
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    error = refused([*HI, {"role": "user", "content": parts}])
    assert error.param == "messages[1].content[1].type"
    assert "image_url" in error.message


@pytest.mark.parametrize(
    ("param", "messages"),
    [
        ("messages", []),
        ("messages[0]", [{"content": "x"}]),
        ("messages[0].content", [{"role": "user", "content": 3}]),
        ("messages[0].content[0].text", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages[0].tool_calls", [{"role": "assistant", "tool_calls": "x"}]),
    ],
)
def test_malformed_messages(param, messages):
    assert refused(messages).param == param


def test_a_continued_message_ends_where_it_ends():
    messages = [*HI, {"role": "assistant", "content": "I say "}]
    text = render(messages, add_generation_prompt=False, continue_final_message=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nI say "
    assert refused(messages, continue_final_message=True).param == "continue_final_message"


def test_kwargs_reach_the_template_but_not_its_messages():
    template = "{{ messages[0].content }} {{ mood }}"
    assert render(HI, template, chat_template_kwargs={"mood": "gay"}) == "hi gay"
    assert refused(HI, chat_template_kwargs={"messages": []}).param == "chat_template_kwargs.messages"


def test_a_developer_is_a_system_where_the_template_knows_no_developer():
    assert "<|im_start|>system\nx" in render([{"role": "developer", "content": "x"}])


def test_tools_reach_a_template_that_knows_them():
    template = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    assert render(HI, template, tools=[TOOL]) == (
        '{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}'
    )
    assert render(HI, template, tools=[TOOL], tool_choice="none") == ""


def test_tools_are_told_in_words_where_the_template_knows_none():
    text = render([{"role": "system", "content": "be kind"}, *HI], tools=[TOOL])
    assert text.startswith("<|im_start|>system\nbe kind\n\n")
    assert '"name": "f"' in text
    assert "<tool_call>" in text
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "42"},
    ]
    text = render(messages)
    assert '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>' in text
    assert "<|im_start|>user\n<tool_response>\n42\n</tool_response>" in text


def test_arguments_of_past_calls_are_objects_for_the_template():
    template = (
        "{{ tools }}{% for c in messages[0].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
    )
    broken = {**CALL, "function": {"name": "f", "arguments": '{"a": '}}
    assert render([{"role": "assistant", "tool_calls": [CALL]}], template) == 'None{"a": 1}'
    assert render([{"role": "assistant", "tool_calls": [broken]}], template) == 'None"{\\"a\\": "'


def test_a_template_may_refuse():
    error = refused(HI, "{{ raise_exception('no such thing') }}")
    assert error.param == "messages"
    assert "no such thing" in error.message


def test_a_template_that_fails_is_an_error_of_the_request():
    assert refused(HI, "{{ messages[0].content + 3 }}").param == "messages"
    assert refused(HI, "{{ messages[7].content.x }}").param == "messages"


def test_templates_are_sandboxed():
    assert refused(HI, "{{ ''.__class__.__mro__[1].__subclasses__() }}").param == "messages"
    assert refused(HI, "{{ messages.append(1) }}").param == "messages"


def test_no_template_no_chat():
    with pytest.raises(RequestError) as caught:
        render_chat(byte_text_model(None), ChatInput(messages=HI))
    assert caught.value.param == "model"


def test_a_template_that_does_not_compile():
    assert refused(HI, "{% if %}").param == "model"
