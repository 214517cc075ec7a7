"""Chat templates rendered by us and by transformers, feature by feature."""

import datetime

import pytest
import torch
from transformers.utils.chat_template_utils import render_jinja_template

from mortice.text.calls import ChatInput
from mortice.text.fake import CHATML, byte_text_model
from mortice.text.template import render_chat

torch.set_num_threads(1)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'It\'s <b>"fine"</b> & dry — 日本',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi <there> & “you”"},
    {"role": "assistant", "content": "Hello.  "},
    {"role": "user", "content": "Weather?\n"},
]
TEMPLATES = {
    "chatml": CHATML,
    "blocks": """
    {%- if tools %}
        {{- '<tools>' }}
        {%- for tool in tools %}
            {{- "\\n" }}{{- tool | tojson }}
        {%- endfor %}
        {{- tools | tojson(indent=2) }}
    {%- endif %}
    {%- set ns = namespace(last=-1) %}
    {%- for message in messages %}
        {%- if message.role == 'system' %}{% continue %}{% endif %}
        {%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
        {%- if message.role == 'assistant' %}
            {%- generation %}{{ message.content | trim }}{% endgeneration %}
        {%- else %}
            {{- '[' ~ message['role'] ~ ']' ~ message['content'] }}
        {%- endif %}
        {%- if loop.index0 > 40 %}{% break %}{% endif %}
    {%- endfor %}
    {{- ns.last }}{{ bos_token }}{% if add_generation_prompt %}{{ '>' }}{% endif %}
    """,
    "date": "{{ strftime_now('%d %b %Y') }}{% if not tools %}no tools{% endif %}{{ mood | default('calm') }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers(name, tools, add_generation_prompt):
    template = TEMPLATES[name]
    if tools and name == "chatml":
        pytest.skip("this template knows no tools: we tell them in words, transformers leaves them out")
    model = byte_text_model(template)
    model.named_tokens = {"bos_token": "<s>"}
    chat = ChatInput(
        messages=CHAT,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        chat_template_kwargs={"mood": "gay"},
    )
    [theirs], _ = render_jinja_template(
        [CHAT],
        tools=tools,
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        mood="gay",
    )
    assert render_chat(model, chat) == theirs


@pytest.mark.parametrize("ending", ["I say", "I say ", "I\n\nsay\n"])
def test_continues_as_transformers(ending):
    messages = [*CHAT, {"role": "assistant", "content": ending}]
    chat = ChatInput(messages=messages, add_generation_prompt=False, continue_final_message=True)
    [theirs], _ = render_jinja_template([messages], chat_template=CHATML, continue_final_message=True)
    assert render_chat(byte_text_model(), chat) == theirs


def test_the_date_is_todays():
    today = datetime.datetime.now().strftime("%d %b %Y")
    model = byte_text_model(TEMPLATES["date"])
    assert today in render_chat(model, ChatInput(messages=CHAT))
