"""Schemas and expressions made to explode, while others' streams are in flight: 400 for who sent them, and not a
token of difference for the others.
"""

import threading

import openai
import pytest
from openai import OpenAI

LAYERS = 24
REFUSED = {  # before a token is made, or when it gets out of hand on the way
    "regex that is none": {"guided_regex": "(a"},
    "regex that grows": {"guided_regex": "(((a{1,200}){1,200}){1,200}){1,200}"},
    "regex of many ways": {"guided_regex": "(.*[a-m].{100}|.*[n-z].{90}|.*[A-Z].{80})+"},
    "schema that doubles": {
        "guided_json": {
            "$ref": "#/$defs/n0",
            "$defs": {
                f"n{i}": {
                    "allOf": [{"$ref": f"#/$defs/n{i + 1}"}, {"anyOf": [{"$ref": f"#/$defs/n{i + 1}"}] * 2}]
                }
                for i in range(LAYERS)
            }
            | {f"n{LAYERS}": {"type": "object", "properties": {"a": {"type": "integer"}}}},
        }
    },
    "schema of nothing": {"guided_json": {"type": "object", "properties": {"a": False}, "required": ["a"]}},
    "grammar that branches": {"guided_grammar": "start: " + "a? " * 3000 + '\na: "x"+ | a a'},
}
SERVED = {  # large, and yet harmless
    "regex": {"guided_regex": "(a|b)*a(a|b){60}(c|d)*c(c|d){60}"},
    "schema": {
        "guided_json": {
            "type": "object",
            "properties": {f"p{i}": {"type": "string", "maxLength": 5000} for i in range(2000)},
            "required": [f"p{i}" for i in range(2000)],
        }
    },
}


@pytest.fixture
def client(real_server):
    with OpenAI(base_url=f"{real_server.url}/v1", api_key="none", max_retries=0, timeout=90) as client:
        yield client
    real_server.wait_until_at_rest()


def story(client) -> str:
    stream = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "Tell a long story."}], stream=True,
        temperature=0, max_tokens=120, extra_body={"ignore_eos": True},
    )  # fmt: skip
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def attempt(client, bomb: dict) -> str | None:
    """What the refusal says, None where there is none; other errors than 400 come through."""
    try:
        client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=30,
            temperature=0,
            extra_body=bomb,
        )
    except openai.BadRequestError as error:
        return error.message
    return None


@pytest.mark.slow
def test_bombs_hurt_their_sender_alone(client):
    alone = story(client)
    heard: list[str] = []
    listeners = [threading.Thread(target=lambda: heard.append(story(client))) for _ in range(2)]
    for listener in listeners:
        listener.start()
    refusals = {name: attempt(client, bomb) for name, bomb in REFUSED.items()}
    served = {name: attempt(client, bomb) for name, bomb in SERVED.items()}
    for listener in listeners:
        listener.join()
    assert heard == [alone, alone]
    assert set(served.values()) == {None}
    for name, refusal in refusals.items():
        assert refusal is not None, name
        assert len(refusal) < 800
        assert "\\n" not in refusal
