"""Schemathesis reads our OpenAPI document and sends what it allows and what it forbids: nothing may be answered
with 5xx, and nothing may stay behind.
"""

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
STATEFUL = {
    "/admin/pause",
    "/admin/sleep",
    "/admin/drain",
    "/admin/weights",
}  # later requests wait or are refused
OPERATIONS = [
    (path, method)
    for path, methods in document()["paths"].items()
    for method in methods
    if path not in STATEFUL
]
SETTINGS = hypothesis.settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.fixture(scope="module")
def schema(real_server):
    return schemathesis.openapi.from_url(f"{real_server.url}/openapi.json")


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_5xx(schema, real_server, path, method):
    operation = schema[path][method]
    modes = [GenerationMode.POSITIVE]
    if operation.body:  # any text is right in a path
        modes.append(GenerationMode.NEGATIVE)
    for mode in modes:

        @SETTINGS
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def send(case):
            tame(case)
            case.validate_response(case.call(timeout=60), checks=[not_a_server_error])

        send()
    real_server.wait_until_at_rest()


def tame(case) -> None:
    """Little text, and of the model that is there, or every request would end at its name."""
    if not isinstance(case.body, dict):
        return
    if case.path in LIMITS and isinstance(case.body.get("model"), str):
        case.body["model"] = "smollm2"
    for field in LIMITS.get(case.path, ()):
        given = case.body.get(field)
        if given is None or (isinstance(given, int) and given > MAX_TOKENS):
            case.body[field] = MAX_TOKENS
