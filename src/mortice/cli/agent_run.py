"""What `mortice agent run`, `resume` and `branch` do: begin a run, watch it to its end, print what came of it."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import typer

from mortice.agent.durable import Cancelled, RunFailed, Suspended
from mortice.agent.epochs import Proof
from mortice.agent.home import Home
from mortice.agent.loop import Result
from mortice.agent.model import EndpointSpec
from mortice.agent.record import pending
from mortice.agent.service import Agents
from mortice.agent.spec import AgentSpec, read_agent, read_script
from mortice.agent.workflow import load_workflow
from mortice.cli.agent_output import Approve, Watch, print_result, write_files
from mortice.specs.errors import MorticeError, RequestError


def drive(
    place: Home,
    run_id: str,
    begin: Callable[[Agents], Awaitable[Any]],
    *,
    as_json: bool,
    out: Path | None,
    approve: Approve,
    otlp: str | None = None,
    keep_sandbox: bool = False,
    resumed: bool = False,
    made: list[str] | None = None,
) -> None:
    """Begin, watch until the end, print."""
    export_spans(otlp)
    watch = Watch(approve)
    state: dict[str, Any] = {"id": run_id}

    async def go() -> Result | None:
        service = Agents(
            place,
            consent=watch,
            on_event=watch,
            keep_sandbox=keep_sandbox,
            takes_over=resumed or made is not None,
        )
        async with service as agents:
            watch.agents = agents
            proof = await begin(agents)
            state["id"] = made[0] if made else run_id
            watch.begin(state["id"])
            if isinstance(proof, Proof):
                watch.say(proof.said())
            waiting = asyncio.create_task(agents.result(state["id"]))
            stopped = asyncio.create_task(watch.stopped.wait())
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, watch.stopped.set)
            await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not waiting.done():
                waiting.cancel()
                return None
            result = waiting.result()
            if out is not None:
                write_files(agents.artifacts, result.files, out)
            return result

    try:
        result = asyncio.run(go())
    except RunFailed as error:
        raise MorticeError(f"run {state['id']} failed: {error}") from error
    except Suspended as error:
        text = (
            f"run {state['id']} is put aside: {error.reason}; go on with: mortice agent resume {state['id']}"
        )
        raise MorticeError(text) from error
    except Cancelled as error:
        raise MorticeError(f"run {state['id']} was cancelled") from error
    if result is None:
        watch.say(f"run {state['id']} waits; go on with: mortice agent resume {state['id']}")
        if as_json:
            typer.echo(
                msgspec.json.encode({"id": state["id"], "state": "waiting", "ask": watch.asked}).decode()
            )
        raise typer.Exit(0 if watch.asked else 130)
    print_result(state["id"], result, as_json=as_json, resumed=resumed)
    if result.state != "done":
        raise typer.Exit(1)


def spec_of_options(
    task: str,
    script: Path | None,
    config: Path | None,
    base_url: str | None,
    model: str | None,
    tools: list[str],
    max_turns: int | None,
) -> AgentSpec:
    if script is not None and config is not None:
        raise RequestError("a script is an agent's document already; give one of --script and --config")
    spec = read_script(script) if script else read_agent(config) if config else AgentSpec()
    changes: dict[str, Any] = {}
    if task:
        changes["task"] = task
    if tools:
        changes["tools"] = (*spec.tools, *(absolute(name) for name in tools))
    if max_turns is not None:
        changes["budget"] = msgspec.structs.replace(spec.budget, turns=max_turns)
    if base_url is not None or model is not None:
        if not isinstance(spec.model, EndpointSpec):
            raise RequestError("a scripted model has no endpoint", param="base_url")
        named = {"base_url": base_url, "model": model}
        endpoint = {key: value for key, value in named.items() if value is not None}
        changes["model"] = msgspec.structs.replace(spec.model, **endpoint)
    return msgspec.structs.replace(spec, **changes)


def absolute(name: str) -> str:
    """A tool or workflow named by a file, so that a run can be resumed from another folder."""
    file, colon, function = name.rpartition(":")
    return f"{Path(file).resolve()}:{function}" if colon and file.endswith(".py") else name


def export_spans(otlp: str | None) -> None:
    if otlp is None:
        return
    try:  # an extra of its own
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise RequestError(
            "spans need the extra `trace`: pip install 'mortice[trace]'", param="otlp"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "mortice-agent"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp)))
    trace.set_tracer_provider(provider)


def drive_workflow(
    place: Home,
    run_id: str,
    *,
    program: str | None = None,
    given: str = "null",
    stop_on_ask: bool,
    as_json: bool,
    unproven: bool = False,
) -> None:
    """Begin (with a program) or resume, wait for the end or for a question, print."""
    payload: dict[str, Any] | None = None
    if program is not None:
        payload = {"workflow": absolute(program), "input": _given(given)}
        load_workflow(payload["workflow"])

    async def go() -> dict[str, Any]:
        async with Agents(place, takes_over=payload is None) as agents:
            await _begin(agents, run_id, payload, unproven=unproven)
            print(f"run {run_id}", file=sys.stderr, flush=True)
            waiting = asyncio.create_task(agents.durable.result(run_id))
            told: str | None = None
            while not (await asyncio.wait({waiting}, timeout=0.2))[0]:
                ask = pending(await agents.durable.steps(run_id))
                if ask is None or ask.digest == told:
                    continue
                told = ask.digest
                print(f"waits for consent: {ask.tool}  ({command_for(run_id)})", file=sys.stderr, flush=True)
                if stop_on_ask:
                    waiting.cancel()
                    return {"state": "waiting", "output": None, "ask": msgspec.to_builtins(ask)}
            return dict(waiting.result())

    try:
        result = asyncio.run(go())
    except RunFailed as error:
        raise MorticeError(f"run {run_id} failed: {error}") from error
    except Suspended as error:
        raise MorticeError(
            f"run {run_id} is put aside: {error.reason}; go on with: mortice agent workflow resume {run_id}"
        ) from error
    except Cancelled as error:
        raise MorticeError(f"run {run_id} was cancelled") from error
    if as_json:
        typer.echo(msgspec.json.encode({"id": run_id, **result}).decode())
    else:
        typer.echo(result.get("reason") or msgspec.json.encode(result["output"]).decode())
    if result["state"] == "stopped":
        raise typer.Exit(1)


async def _begin(agents: Agents, run_id: str, payload: Any, *, unproven: bool) -> None:
    if payload is not None:
        return await agents.start_workflow(payload, run_id)
    proof = await agents.resume(run_id, unproven=unproven)
    if proof is not None and proof.turn is not None:
        print(proof.said(), file=sys.stderr)


def command_for(run_id: str) -> str:
    return f"mortice agent approve {run_id}"


def _given(text: str) -> Any:
    try:
        if text.startswith("@"):
            return msgspec.json.decode(Path(text[1:]).read_bytes())
        return msgspec.json.decode(text)
    except OSError as error:
        raise RequestError(f"{text[1:]}: {error.strerror}", param="input") from error
    except msgspec.DecodeError as error:
        raise RequestError(f"not JSON: {error}", param="input") from error
