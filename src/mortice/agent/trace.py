"""Spans of a run under OpenTelemetry's GenAI names. Names are in one table, since they still change.

Spans go where OpenTelemetry is told to send them (`mortice agent run --otlp URL`); without that they cost nothing.
Content of prompts, arguments and results is left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from mortice.agent.history import Call
from mortice.agent.model import Reply
from mortice.agent.tool import Output, Tool

SCHEMA_URL = "https://opentelemetry.io/schemas/1.38.0"
NAMES = {
    "operation": "gen_ai.operation.name",
    "provider": "gen_ai.provider.name",
    "model": "gen_ai.request.model",
    "answered_by": "gen_ai.response.model",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "agent": "gen_ai.agent.name",
    "run": "gen_ai.conversation.id",
    "tool": "gen_ai.tool.name",
    "tool_type": "gen_ai.tool.type",
    "call": "gen_ai.tool.call.id",
    "error": "error.type",
    "workflow": "mortice.workflow.name",
    "step": "mortice.step.name",
    "turn": "mortice.turn",
    "strength": "mortice.sandbox.strength",
    "usd": "mortice.cost.usd",
    "mcp_method": "mcp.method.name",
    "mcp_server": "mortice.mcp.server",
}


class ToolSpan:
    def __init__(self, span: Span) -> None:
        self._span = span

    def ended(self, output: Output) -> None:
        if output.strength:
            self._span.set_attribute(NAMES["strength"], output.strength)
        if output.is_error:
            self._span.set_attribute(NAMES["error"], "tool_error")
            self._span.set_status(Status(StatusCode.ERROR))


class Spans:
    def __init__(self) -> None:
        self._tracer = trace.get_tracer("mortice.agent", schema_url=SCHEMA_URL)

    @contextmanager
    def agent(self, name: str, run_id: str) -> Iterator[None]:
        with self._span(f"invoke_agent {name}", operation="invoke_agent", agent=name, run=run_id):
            yield

    @contextmanager
    def workflow(self, name: str, run_id: str) -> Iterator[None]:
        with self._span(f"invoke_workflow {name}", operation="invoke_workflow", workflow=name, run=run_id):
            yield

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        with self._span(f"step {name}", step=name):
            yield

    @contextmanager
    def chat(self, model: str, provider: str, turn: int) -> Iterator["ChatSpan"]:
        attributes: dict[str, Any] = {"operation": "chat", "model": model, "provider": provider, "turn": turn}
        with self._span(f"chat {model}", SpanKind.CLIENT, **attributes) as span:
            yield ChatSpan(span)

    @contextmanager
    def tool(self, tool: Tool, call: Call) -> Iterator[ToolSpan]:
        """The span of a call to an MCP server has MCP's attributes too, instead of a second span inside it."""
        named = {"operation": "execute_tool", "tool": tool.name, "call": call.id, "tool_type": "function"}
        if tool.origin.startswith("mcp:"):
            server = tool.origin.removeprefix("mcp:")
            named |= {"tool_type": "extension", "mcp_method": "tools/call", "mcp_server": server}
        with self._span(f"execute_tool {tool.name}", SpanKind.INTERNAL, **named) as span:
            yield ToolSpan(span)

    @contextmanager
    def _span(self, name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: Any) -> Iterator[Span]:
        named = {NAMES[key]: value for key, value in attributes.items()}
        with self._tracer.start_as_current_span(name, kind=kind, attributes=named) as span:
            yield span


class ChatSpan:
    def __init__(self, span: Span) -> None:
        self._span = span

    def ended(self, reply: Reply, *, usd: float) -> None:
        if usd:
            self._span.set_attribute(NAMES["usd"], usd)
        self._span.set_attribute(NAMES["input_tokens"], reply.usage.input_tokens)
        self._span.set_attribute(NAMES["output_tokens"], reply.usage.output_tokens)
        if reply.model:
            self._span.set_attribute(NAMES["answered_by"], reply.model)
