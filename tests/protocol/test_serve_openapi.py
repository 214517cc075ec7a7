"""Requests that schemathesis makes of our own OpenAPI document: none may be answered with a fault of ours."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")
requests = pytest.importorskip("requests")

EXAMPLES = 8  # requests an operation
GONE_AFTER = {
    "post /admin/sleep",
    "post /admin/drain",
    "post /admin/pause",
}  # they change what others would see


async def test_no_operation_fails(server):
    document = (await server.http.get("/openapi.json")).json()
    schema = schemathesis.openapi.from_dict(document)
    drawn = []
    for operation in (result.ok() for result in schema.get_all_operations()):

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def draw(case):
            drawn.append(case)

        draw()
    assert len({(case.method, case.path) for case in drawn}) >= 25
    for case in sorted(drawn, key=lambda case: f"{case.method.lower()} {case.path}" in GONE_AFTER):
        kwargs = case.as_transport_kwargs(base_url=server.url)
        kwargs.pop("cookies", None)
        answer = await asyncio.to_thread(send, kwargs)
        allowed = answer in (503, 409) if server.edge.draining or server.cluster.state != "running" else False
        assert answer < 500 or allowed, (case.method, case.path, case.body, answer)


def send(kwargs) -> int:
    return requests.request(**kwargs, timeout=20).status_code
