"""An agent whose model is really served: SmolLM2 in `mortice serve`. The model is weak, so what is asserted is what holds
for any model: its calls are valid, they are done, and the run ends.
"""

import pytest

from mortice.agent.budget import Budget
from mortice.agent.durable_memory import MemoryDurable
from mortice.agent.history import Answer, Observation
from mortice.agent.home import home
from mortice.agent.model import EndpointSpec
from mortice.agent.service import Agents
from mortice.agent.spec import AgentSpec


def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_small_model_makes_valid_calls(real_server, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr("mortice.agent.toolbox.load_function", lambda name: add)
    monkeypatch.setattr(add, "mortice_tool", {"effect": "pure", "untrusted": False}, raising=False)
    spec = AgentSpec(
        task="Use the tool add to add 2 and 40.",
        model=EndpointSpec(base_url=f"{real_server.url}/v1", max_tokens=96),
        tools=("tests:add",),
        budget=Budget(turns=2),
    )
    durable = MemoryDurable()
    async with Agents(
        home(tmp_path), durable=durable, on_event=lambda run, event: events.append(event)
    ) as agents:
        result = await agents.run(spec, "r")
    assert result.state in ("done", "stopped")
    assert result.spent.tokens > 0
    answers = [e for e in events if isinstance(e, Answer)]
    assert answers[0].calls or answers[0].text
    seen = [e for e in events if isinstance(e, Observation)]
    assert all(not e.is_error for e in seen)
    assert all(e.tool == "add" for e in seen)
    real_server.wait_until_at_rest()
