"""langchain-openai against BASE_URL (argument 1): prints what came back as one JSON object."""

import json
import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field

QUESTION = "What is the capital of France? Answer in one sentence."


class Person(BaseModel):
    """A person."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return city


def chat(**more):
    given = {"model": "smollm2", "base_url": sys.argv[1], "api_key": "none", "temperature": 0}
    return ChatOpenAI(**{**given, "max_tokens": 60, **more})


whole = chat().invoke(QUESTION)
pieces = list(chat(stream_usage=True).stream(QUESTION))
streamed = pieces[0]
for piece in pieces[1:]:
    streamed += piece
made = {
    method: chat().with_structured_output(Person, method=method).invoke("Invent a person.").model_dump()
    for method in ("json_schema", "function_calling")
}
bound = chat().bind_tools([weather], tool_choice="weather", parallel_tool_calls=False)
call = bound.invoke("How is the weather in Oslo?").tool_calls[0]
responses = chat(use_responses_api=True).invoke(QUESTION)
print(
    json.dumps(
        {
            "whole": whole.content,
            "streamed": streamed.content,
            "usage": [whole.usage_metadata["output_tokens"], streamed.usage_metadata["output_tokens"]],
            "structured": made,
            "call": {"name": call["name"], "args": call["args"]},
            "responses": responses.text,
        }
    )
)
