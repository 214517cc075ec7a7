"""Schemathesis reads our OpenAPI document and sends what it allows and what it forbids: nothing may be answered
with 5xx, and nothing may stay behind.
"""

from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from mortice.serve.openapi import document

MAX_TOKENS = 3  # what a request may make: the model is slow, and it is the edge that is tested
LIMITS = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/generate": ("max_tokens",),
}
# What no generator guesses: values in the place of those it made up, so that requests get beyond them.
SENSE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "tools": None},
    "/v1/completions": {"prompt": ["Hi", "there"]},
    "/v1/responses": {"input": "Hi", "tools": None, "include": None, "previous_response_id": None},
    "/generate": {"token_ids": [1, 2, 3]},
}
SENSE_EVERYWHERE = {
    "model": "smollm2",
    "stop_token_ids": [2],
    "allowed_token_ids": None,
    "logit_bias": {"5": 1},
    "min_tokens": 1,
}
STATEFUL = {"/admin/pause", "/admin/sleep", "/admin/drain", "/admin/weights"}  # later requests wait or fail
OPERATIONS = [
    (path, method)
    for path, methods in document()["paths"].items()
    for method in methods
    if path not in STATEFUL
]


@pytest.fixture(scope="module")
def schema(real_server):
    return schemathesis.openapi.from_url(f"{real_server.url}/openapi.json")


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_the_document_allows(schema, real_server, path, method):
    send(schema[path][method], GenerationMode.POSITIVE)
    real_server.wait_until_at_rest()


@pytest.mark.parametrize(
    "path", [path for path, _ in OPERATIONS if "requestBody" in document()["paths"][path].get("post", {})]
)
def test_what_the_document_forbids(schema, real_server, path):
    answers = send(schema[path]["post"], GenerationMode.NEGATIVE)
    assert 400 in answers
    real_server.wait_until_at_rest()


@pytest.mark.parametrize("path", SENSE)
def test_strange_options_of_sensible_requests(schema, real_server, path):
    answers = send(schema[path]["post"], GenerationMode.POSITIVE, num_cases=25, sensible=True)
    assert 200 in answers
    real_server.wait_until_at_rest()


def send(operation, mode: GenerationMode, *, num_cases: int = 12, sensible: bool = False) -> list[int]:
    """The statuses of the answers to so many generated requests."""
    answers: list[int] = []

    @hypothesis.settings(
        max_examples=num_cases,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def go(case):
        if isinstance(case.body, dict):
            shorten(case.path, case.body)
            if sensible:
                make_sense(case.path, case.body)
        response = case.call(timeout=60)
        answers.append(response.status_code)
        case.validate_response(response, checks=[not_a_server_error])

    go()
    return answers


def shorten(path: str, body: dict[str, Any]) -> None:
    for field in LIMITS.get(path, ()):
        given = body.get(field)
        if given is None or (isinstance(given, int | float) and given > MAX_TOKENS):
            body[field] = MAX_TOKENS


def make_sense(path: str, body: dict[str, Any]) -> None:
    body |= {field: value for field, value in (SENSE_EVERYWHERE | SENSE[path]).items() if field in body}
    for field, value in body.items():
        if isinstance(value, float) and value.is_integer():
            body[field] = int(value)  # 1.0 is an integer for JSON Schema, and none for us
