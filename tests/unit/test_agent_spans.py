"""Spans of a run under OpenTelemetry's GenAI names: how they nest, what they say and what they do not."""

from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from mortice.agent import trace
from mortice.agent.budget import Price
from mortice.agent.durable_memory import MemoryDurable
from mortice.agent.history import Call
from mortice.agent.home import home
from mortice.agent.model import ScriptedCall, ScriptedTurn, ScriptSpec
from mortice.agent.service import Agents
from mortice.agent.spec import AgentSpec
from mortice.agent.tool import Output, Tool
from mortice.agent.trace import Spans

TOOLS = Path(__file__).parent.parent / "data" / "agent" / "tools.py"
SECRET = "what the prompt and the result say"


@pytest.fixture
def spans(monkeypatch):
    """Spans that have ended, by name."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace.trace, "get_tracer", provider.get_tracer)
    return lambda: {span.name: span for span in exporter.get_finished_spans()}


async def test_a_run_is_a_tree_of_spans(spans, tmp_path):
    turns = (
        ScriptedTurn(say=SECRET, call=ScriptedCall(tool="add", arguments={"a": 1, "b": 2})),
        ScriptedTurn(call=ScriptedCall(tool="fail", arguments={})),
        ScriptedTurn(say="done"),
    )
    spec = AgentSpec(
        name="adder",
        task=SECRET,
        tools=(f"{TOOLS}:add", f"{TOOLS}:fail"),
        model=ScriptSpec(turns=turns, name="parrot"),
        price=Price(input=1000.0, output=1000.0),
    )
    async with Agents(home(tmp_path), durable=MemoryDurable()) as agents:
        result = await agents.run(spec, "r")
    found = spans()
    assert set(found) == {"invoke_agent adder", "chat parrot", "execute_tool add", "execute_tool fail"}
    root = found["invoke_agent adder"]
    assert dict(root.attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "adder",
        "gen_ai.conversation.id": "r",
    }
    for span in found.values():
        assert span is root or span.parent.span_id == root.context.span_id
        assert span.instrumentation_scope.schema_url == trace.SCHEMA_URL
        assert SECRET not in str(dict(span.attributes))
    chat = found["chat parrot"]
    assert chat.kind == SpanKind.CLIENT
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert chat.attributes["gen_ai.provider.name"] == "mortice.script"
    assert chat.attributes["gen_ai.request.model"] == "parrot"
    assert chat.attributes["gen_ai.response.model"] == "scripted"
    assert chat.attributes["gen_ai.usage.input_tokens"] > chat.attributes["gen_ai.usage.output_tokens"] > 0
    assert 0 < chat.attributes["mortice.cost.usd"] < result.spent.usd
    call = found["execute_tool add"]
    assert call.attributes["gen_ai.tool.name"] == "add"
    assert call.attributes["gen_ai.tool.call.id"] == "call_0_0"
    assert call.status.status_code == StatusCode.UNSET
    failed = found["execute_tool fail"]
    assert failed.attributes["error.type"] == "tool_error"
    assert failed.status.status_code == StatusCode.ERROR


def test_a_call_to_a_server_says_which(spans):
    async def run(arguments, context):
        raise AssertionError

    tool = Tool(name="files__read", description="", parameters={}, run=run, origin="mcp:files")
    with Spans().tool(tool, Call(id="c", tool="files__read", arguments={})) as span:
        span.ended(Output(text="x", strength="gvisor"))
    (made,) = spans().values()
    assert made.attributes["mcp.method.name"] == "tools/call"
    assert made.attributes["mortice.mcp.server"] == "files"
    assert made.attributes["gen_ai.tool.type"] == "extension"
    assert made.attributes["mortice.sandbox.strength"] == "gvisor"
