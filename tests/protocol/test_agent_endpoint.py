"""An OpenAI-compatible endpoint as an agent's model: what is sent, what is retried, what weak models write."""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mortice.agent.dashboard import list_runs, read_run
from mortice.agent.durable import Suspended
from mortice.agent.endpoint import EndpointModel, read_reply
from mortice.agent.home import home
from mortice.agent.model import EndpointSpec, ModelError, ScriptedCall, ScriptedTurn, ScriptSpec
from mortice.agent.service import Agents
from mortice.agent.spec import AgentSpec
from mortice.cli.agent_show import cancel_run
from mortice.obs.audit import chains_in
from mortice.obs.audit_verify import records

TOOLS = Path(__file__).parent.parent / "data" / "agent" / "tools.py"

TOOL = {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}
ASK = [{"role": "user", "content": "hi"}]


class Server:
    """Gives the prepared answers in order and keeps what it was asked."""

    def __init__(self, *answers, owned_by: str = "someone") -> None:
        self.answers, self.asked, self.owned_by = list(answers), [], owned_by

    async def models(self, request):
        return JSONResponse({"data": [{"id": "m1", "owned_by": self.owned_by}]})

    async def chat(self, request):
        self.asked.append(json.loads(await request.body()))
        answer = self.answers.pop(0)
        return answer if isinstance(answer, Response) else JSONResponse(answer)


def says(text=None, calls=()):
    made = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls]
    message = {"role": "assistant", "content": text} | ({"tool_calls": made} if made else {})
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    return {"model": "m1-0", "choices": [{"message": message}], "usage": usage}


@asynccontextmanager
async def served(server: Server, **fields):
    app = Starlette(
        routes=[
            Route("/v1/models", server.models),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
        ]
    )
    runner = uvicorn.Server(config := uvicorn.Config(app, port=0, log_level="error"))
    listener = config.bind_socket()
    task = asyncio.create_task(runner.serve(sockets=[listener]))
    model = EndpointModel(EndpointSpec(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", **fields))
    try:
        yield model
    finally:
        await model.close()
        runner.should_exit = True
        await task


async def test_plain_answers_and_calls():
    server = Server(
        says(None, [("c1", "add", '{"a": 1}'), ("", "add", ""), ("c1", "add", "{}")]), says("done")
    )
    async with served(server, seed=5) as model:
        reply = await model.reply(ASK, [TOOL], turn=2, timeout_s=20)
        assert [(c.id, c.arguments) for c in reply.calls] == [
            ("c1", {"a": 1}),
            ("call_2_1", {}),
            ("call_2_2", {}),
        ]
        assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.model) == (7, 3, "m1-0")
        assert (await model.reply(ASK, [], turn=3, timeout_s=20)).text == "done"
    first, second = server.asked
    assert (first["model"], first["tool_choice"], first["seed"]) == ("m1", "auto", 5)
    assert "tools" not in second


async def test_a_server_that_holds_its_model_to_calls_is_asked_to():
    answers = says(None, [("c1", "add", "{}")]), says("", [("c2", "final_answer", '{"answer": "42"}')])
    server = Server(*answers, owned_by="mortice")
    async with served(server) as model:
        reply = await model.reply(ASK, [TOOL], turn=0, timeout_s=20)
        assert [c.tool for c in reply.calls] == ["add"]
        final = await model.reply(ASK, [TOOL], turn=1, timeout_s=20)
        assert (final.text, final.calls) == ("42", ())
    assert server.asked[0]["tool_choice"] == "required"
    assert [t["function"]["name"] for t in server.asked[0]["tools"]] == ["add", "final_answer"]


async def test_overload_passes_and_refusals_do_not():
    busy = JSONResponse({"error": {"message": "busy"}}, status_code=503)
    async with served(Server(busy, busy, says("at last"))) as model:
        assert (await model.reply(ASK, [], turn=0, timeout_s=30)).text == "at last"
    wrong = JSONResponse({"error": {"message": "no such field"}}, status_code=400)
    server = Server(wrong, says("never"))
    async with served(server) as model:
        with pytest.raises(ModelError, match="no such field"):
            await model.reply(ASK, [], turn=0, timeout_s=30)
    assert len(server.asked) == 1


async def test_a_run_whose_model_cannot_be_reached_goes_on_later(tmp_path):
    """Nothing that was done is done again, by the process that was there or by another one."""
    busy = JSONResponse({"error": {"message": "busy"}}, status_code=503)
    locked = JSONResponse({"error": {"message": "no such key"}}, status_code=401)
    server = Server(says(calls=[("c1", "add", '{"a": 1, "b": 2}')]), busy, locked, says("It is 3."))
    async with served(server) as model:
        endpoint = EndpointSpec(base_url=model._base, attempts=1)
        spec = AgentSpec(task="add", model=endpoint, tools=(f"{TOOLS}:add",))
        async with Agents(home(tmp_path)) as agents:
            await agents.start(spec, "r")
            with pytest.raises(Suspended, match=r"the model cannot be reached.*busy"):
                await agents.result("r")
            await agents.resume("r")
            with pytest.raises(Suspended, match="no such key"):
                await agents.result("r")
        async with Agents(home(tmp_path), takes_over=True) as agents:
            proof = await agents.resume("r")
            assert proof.altered == ()
            result = await agents.result("r")
            names = [step.name for step in await agents.durable.steps("r")]
            kinds = [
                r["kind"] for chain in chains_in(agents.log.folder) for r in records(agents.log.folder, chain)
            ]
    assert (result.state, result.output, result.turns) == ("done", "It is 3.", 2)
    assert names == ["think 0", "call 0.0", "think 1"]
    assert len(server.asked) == 4
    assert (kinds.count("tool_call"), kinds.count("run_suspended")) == (1, 2)


async def test_a_sub_agent_whose_model_is_away_puts_its_parent_aside_too(tmp_path):
    """And both are shown as that, not as cancelled; `resume` of the parent goes on with both."""
    busy = JSONResponse({"error": {"message": "busy"}}, status_code=503)
    server = Server(busy, busy, says("It is 3."))
    async with served(server) as model:
        helper = AgentSpec(name="helper", model=EndpointSpec(base_url=model._base, attempts=1))
        script = ScriptSpec(
            turns=(
                ScriptedTurn(call=ScriptedCall(tool="helper", arguments={"task": "add"})),
                ScriptedTurn(say="{{last}}"),
            )
        )
        spec = AgentSpec(task="delegate", model=script, agents=(helper,))
        async with Agents(home(tmp_path)) as agents:
            await agents.start(spec, "r")
            with pytest.raises(Suspended, match=r"r\.0\.0 that it waits for is put aside: the model.*busy"):
                await agents.result("r")
            await agents.resume("r")
            with pytest.raises(Suspended):
                await agents.result("r")
        rows = {row.id: row.state for row in list_runs(home(tmp_path))}
        assert rows == {"r": "suspended", "r.0.0": "suspended"}
        made = read_run(home(tmp_path), "r")
        assert (made.state, "busy" in made.reason) == ("suspended", True)
        async with Agents(home(tmp_path), takes_over=True) as agents:
            proof = await agents.resume("r")
            assert (proof.altered, proof.agents) == ((), ("r.0.0",))
            result = await agents.result("r")
        rows = {row.id: row.state for row in list_runs(home(tmp_path))}
    assert (result.state, result.output) == ("done", "It is 3.")
    assert rows == {"r": "done", "r.0.0": "done"}


async def test_what_was_put_aside_can_be_cancelled_for_good(tmp_path):
    spec = AgentSpec(task="x", model=EndpointSpec(base_url="http://127.0.0.1:1/v1", attempts=1))
    async with Agents(home(tmp_path)) as agents:
        await agents.start(spec, "r")
        with pytest.raises(Suspended):
            await agents.result("r")
        assert (await agents.durable.find("r")).state == "suspended"
    cancel_run(home(tmp_path), "r")
    assert [row.state for row in list_runs(home(tmp_path))] == ["cancelled"]


async def test_nobody_there():
    model = EndpointModel(EndpointSpec(base_url="http://127.0.0.1:1/v1", attempts=2))
    with pytest.raises(ModelError, match="Connect"):
        await model.reply(ASK, [], turn=0, timeout_s=20)
    await model.close()


@pytest.mark.parametrize("arguments", ["{broken", "[1]", '"text"', "[" * 100_000])
def test_arguments_that_are_none_are_told_to_the_model(arguments):
    (call,) = read_reply(says("", [("c", "add", arguments)]), 0).calls
    assert call.arguments == {}
    assert call.malformed.startswith("the arguments are no JSON")


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"message": None}]}, [], "text"])
def test_what_is_no_completion(answer):
    with pytest.raises(ModelError):
        read_reply(answer, 0)
