"""Guided decoding on SmolLM2, sampled at temperature 1: whatever the model would rather say, the answer is what
the schema allows, on every path. The judge is jsonschema-rs, which has nothing to do with our compiler.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from mortice.cluster.live import LiveCluster
from mortice.models import store
from mortice.specs.deployment import Deployment, EngineLimits, Speculation
from mortice.specs.errors import MorticeError
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams
from mortice.text.calls import ChatInput, GrammarInput
from mortice.text.grammar import grammar_for
from mortice.text.load import TextModel, load_text_model
from mortice.text.template import render_chat

pytestmark = pytest.mark.slow


def strict(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


WORD = {"type": "string", "maxLength": 12}
SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": strict(name=WORD, age={"type": "integer", "minimum": 0, "maximum": 120}),
    "enum": strict(colour={"enum": ["red", "green", None, 7]}, kind={"const": "paint"}),
    "nested": strict(person=strict(name=WORD, home=strict(city=WORD, zip={"type": "integer"}))),
    "list": {
        "type": "array",
        "items": {"type": "integer", "minimum": 1, "maximum": 9},
        "minItems": 3,
        "maxItems": 5,
    },
    "any-of": strict(value={"anyOf": [{"type": "boolean"}, {"type": "null"}, WORD]}),
    "numbers": strict(
        share={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        step={"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    ),
    "pattern": strict(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "formats": strict(day={"type": "string", "format": "date"}, at={"type": "string", "format": "time"}),
    "refs": {
        "$defs": {"point": strict(x={"type": "integer", "minimum": -9, "maximum": 9}, label=WORD)},
        **strict(start={"$ref": "#/$defs/point"}, end={"$ref": "#/$defs/point"}),
    },
    "tagged": {
        "oneOf": [
            strict(shape={"const": "circle"}, radius={"type": "integer", "minimum": 1, "maximum": 50}),
            strict(shape={"const": "square"}, side={"type": "integer", "minimum": 1, "maximum": 50}),
        ]
    },
    "optional": {
        **strict(id={"type": "integer", "minimum": 0, "maximum": 999}, note=WORD, größe=WORD),
        "required": ["id"],
    },
}
SEEDS = (1, 2, 3)
QUESTION = [{"role": "user", "content": "Write about a town you know."}]
PARAMETERS = strict(city=WORD, days={"type": "integer", "minimum": 1, "maximum": 14})
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "news", "parameters": strict(topic=WORD)}},
]
CALL = re.compile(r"<tool_call>\n(.*)\n</tool_call>")


@pytest.fixture(scope="module")
def model_folder() -> Path:
    try:
        return store.pull("smollm2", print)
    except MorticeError as error:
        pytest.skip(f"no SmolLM2 here: {error}")


@pytest.fixture(scope="module")
def text(model_folder) -> TextModel:
    return load_text_model(model_folder)


@asynccontextmanager
async def cluster(folder: Path, prefill: int, **more: Any) -> AsyncIterator[LiveCluster]:
    deployment = Deployment(
        model="smollm2",
        dtype="float32",
        prefill=prefill,
        local_prefill_tokens=0,
        limits=EngineLimits(kv_bytes=512 << 20),
        **more,
    )
    live = LiveCluster(deployment, model_path=str(folder), draft_model_path=None, threads=1)
    try:
        await live.start()
        yield live
        for worker in (await live.call("check_integrity", {})).values():
            assert worker["num_sequences"] == worker["num_leases"] == 0
    finally:
        await live.stop(0)


async def answers_to(
    live: LiveCluster, text: TextModel, name: str, given: GrammarInput, *, seed: int, n: int = 1
) -> list[str]:
    """The text of each sequence; every one must have ended by itself."""
    prompt = text.encode(render_chat(text, ChatInput(messages=QUESTION, tools=given.tools)), False)
    sampling = SamplingParams(
        max_tokens=120, temperature=1.0, seed=seed, grammar=grammar_for(given, text.grammar_tags)
    )
    tokens: list[list[int]] = [[] for _ in range(n)]
    finish: dict[int, Any] = {}
    async for delta in live.generate(Request(id=name, prompt_token_ids=prompt, sampling=sampling, n=n)):
        tokens[delta.index] += delta.token_ids
        if delta.finish_reason is not None:
            finish[delta.index] = delta.finish_reason, delta.error
    assert finish == dict.fromkeys(range(n), ("stop", None))
    return [text.decode(ids) for ids in tokens]


def form(schema: dict[str, Any]) -> GrammarInput:
    return GrammarInput(
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema, "strict": True},
        }
    )


def check(schema: dict[str, Any], answer: str) -> None:
    jsonschema_rs.validate(schema, json.loads(answer))


def check_call(answer: str) -> None:
    found = CALL.fullmatch(answer.strip())
    assert found, answer
    call = json.loads(found[1])
    assert set(call) == {"name", "arguments"}
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    jsonschema_rs.validate(schemas[call["name"]], call["arguments"])


async def all_schemas(live: LiveCluster, text: TextModel) -> list[str]:
    """Every schema and a tool call, for every seed, all at once."""
    cases = [(name, form(schema), seed) for name, schema in SCHEMAS.items() for seed in SEEDS]
    tool = GrammarInput(tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    cases += [("tool", tool, seed) for seed in SEEDS]
    found = await asyncio.gather(
        *(answers_to(live, text, f"{name}-{seed}", given, seed=seed) for name, given, seed in cases)
    )
    for (name, _, _), (answer,) in zip(cases, found, strict=True):
        if name == "tool":
            check_call(answer)
        else:
            check(SCHEMAS[name], answer)
    return [answer for (answer,) in found]


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    """What each path answered; filled by the tests."""
    return {}


@pytest.mark.parametrize("path", ["colocated", "split", "drafted"])
async def test_every_schema_is_kept(model_folder, text, path, answers):
    speculation = Speculation(max_draft=4, ngram=2) if path == "drafted" else None
    async with cluster(model_folder, 1 if path == "split" else 0, speculation=speculation) as live:
        answers[path] = await all_schemas(live, text)
        if path == "split":
            several = await answers_to(live, text, "n", form(SCHEMAS["flat"]), seed=9, n=4)
            assert len(set(several)) > 1
            for answer in several:
                check(SCHEMAS["flat"], answer)
            again = await answers_to(live, text, "n-again", form(SCHEMAS["flat"]), seed=9, n=4)
            assert again == several
        if path == "drafted":
            drafted = await answers_to(live, text, "n", form(SCHEMAS["nested"]), seed=9, n=3)
            for answer in drafted:
                check(SCHEMAS["nested"], answer)
    assert len(set(answers[path])) > len(SCHEMAS)  # the seeds do sample
    assert answers[path] == next(iter(answers.values()))  # and mean the same on every path
