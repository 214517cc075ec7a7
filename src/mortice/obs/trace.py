"""OpenTelemetry spans of a request, written when it has ended from its timeline. Needs the extra `trace`.

One server span a request with the `gen_ai.*` attributes of OpenTelemetry's semantic conventions, and below
it one span a stage that took time. Nothing is recorded while the request runs, so tracing costs a request
nothing per token.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import msgspec

from mortice.obs.timeline import STAGES, Timeline
from mortice.specs.errors import RequestError


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request when it has ended."""

    operation: str  # chat | text_completion | ...
    model: str
    timeline: Timeline
    prompt_tokens: int
    completion_tokens: int
    finish_reasons: Sequence[str]
    max_tokens: int
    temperature: float
    error: str | None = None
    traceparent: str | None = None


class Tracer(Protocol):
    def record(self, ended: Ended) -> None: ...

    def close(self) -> None:
        """Send what is still buffered."""


class NoTracer:
    """Tracing is off."""

    def record(self, ended: Ended) -> None:
        return None

    def close(self) -> None:
        return None


def make_tracer(endpoint: str | None, exporter: Any = None) -> Tracer:
    """Tracer that sends to an OTLP/HTTP endpoint, or to `exporter` (a SpanExporter) if one is given; none:
    NoTracer.

    Raises RequestError where the extra `trace` is not installed.
    """
    if endpoint is None and exporter is None:
        return NoTracer()
    try:
        return _OtelTracer(endpoint, exporter)
    except ImportError as error:
        raise RequestError('tracing needs `pip install "mortice[trace]"`', param="trace") from error


class _OtelTracer:
    def __init__(self, endpoint: str | None, exporter: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if exporter is None:
            module = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")

            exporter = module.OTLPSpanExporter(endpoint=endpoint)
        self._trace = trace
        self._provider = TracerProvider(resource=Resource.create({"service.name": "mortice"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("mortice")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, ended: Ended) -> None:
        timeline = ended.timeline
        carrier = {"traceparent": ended.traceparent} if ended.traceparent else {}
        root = self._tracer.start_span(
            f"{ended.operation} {ended.model}",
            context=self._propagator.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            start_time=_ns(timeline.arrival_s),
            attributes=_attributes(ended),
        )
        if ended.error is not None:
            root.set_status(self._trace.Status(self._trace.StatusCode.ERROR, ended.error))
            root.set_attribute("error.type", ended.error)
        within = self._trace.set_span_in_context(root)
        start = timeline.arrival_s
        for stage, seconds in timeline.stages().items():
            if seconds > 0:
                span = self._tracer.start_span(stage, context=within, start_time=_ns(start))
                span.end(_ns(start + seconds))
            start += seconds
        root.end(_ns(timeline.end_s))

    def close(self) -> None:
        self._provider.shutdown()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _attributes(ended: Ended) -> Mapping[str, Any]:
    timeline = ended.timeline
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": ended.operation,
        "gen_ai.provider.name": "mortice",
        "gen_ai.request.model": ended.model,
        "gen_ai.response.model": ended.model,
        "gen_ai.response.id": timeline.request_id,
        "gen_ai.request.max_tokens": ended.max_tokens,
        "gen_ai.request.temperature": ended.temperature,
        "gen_ai.response.finish_reasons": list(ended.finish_reasons),
        "gen_ai.usage.input_tokens": ended.prompt_tokens,
        "gen_ai.usage.output_tokens": ended.completion_tokens,
        "gen_ai.latency.e2e": timeline.end_s - timeline.arrival_s,
    }
    if timeline.first_token_s:
        attributes["gen_ai.latency.time_to_first_token"] = timeline.first_token_s - timeline.arrival_s
    stages = timeline.stages()
    attributes |= {f"gen_ai.latency.time_in_{stage}": stages[stage] for stage in STAGES}
    return attributes
