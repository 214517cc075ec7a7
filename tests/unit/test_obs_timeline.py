"""Stages add up to the end-to-end latency whatever was seen, and spans say the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mortice.obs.timeline import STAGES, Timeline
from mortice.obs.trace import Ended, NoTracer, make_tracer

_PASSED = [("queued", 101.0), ("route", 102.0), ("prefill", 104.0), ("handoff", 104.1), ("decode", 105.0)]
_PASSED += [("decode", 109.0)]  # of a second life: the first counts


def full() -> Timeline:
    timeline = Timeline(request_id="r", arrival_s=100.0, end_s=110.0, first_token_s=104.5)
    for kind, t in _PASSED:
        timeline.mark(kind, t)
    return timeline


def test_stages_of_a_full_timeline():
    assert full().stages() == {"edge": 1.0, "queue": 1.0, "prefill": 2.0, "transfer": 1.0, "decode": 5.0}


times = st.floats(90, 120) | st.just(0.0)


def test_a_prompt_computed_where_it_decodes_has_no_transfer():
    timeline = Timeline("r", 100.0, queued_s=101.0, prefill_s=102.0, first_token_s=104.0, end_s=110.0)
    assert timeline.stages() == {"edge": 1.0, "queue": 1.0, "prefill": 2.0, "transfer": 0.0, "decode": 6.0}


@given(times, times, times, times, times, st.floats(90, 120))
def test_stages_always_add_up(queued, prefill, handoff, decode, first_token, end):
    timeline = Timeline("r", 100.0, queued, prefill, handoff, decode, first_token, end)
    stages = timeline.stages()
    assert tuple(stages) == STAGES
    assert min(stages.values()) >= 0
    assert sum(stages.values()) == pytest.approx(max(end - 100.0, 0.0))


def test_without_an_endpoint_nothing_is_traced():
    assert isinstance(make_tracer(None), NoTracer)


def test_spans_follow_the_timeline():
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    tracer = make_tracer(None, exporter)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    tracer.record(
        Ended(
            operation="chat",
            model="m",
            timeline=full(),
            prompt_tokens=3,
            completion_tokens=4,
            finish_reasons=["stop"],
            max_tokens=16,
            temperature=0.0,
            traceparent=f"00-{trace_id}-b7ad6b7169203331-01",
        )
    )
    tracer.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"chat m", *STAGES}
    root = spans["chat m"]
    assert f"{root.context.trace_id:032x}" == trace_id
    assert root.attributes["gen_ai.usage.output_tokens"] == 4
    assert (spans["prefill"].end_time - spans["prefill"].start_time) == 2_000_000_000
    assert all(span.context.trace_id == root.context.trace_id for span in spans.values())
