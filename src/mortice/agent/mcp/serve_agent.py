"""An agent as a tool for any MCP host. A call is a durable run: its id comes with the answer, and when the host or this
process goes away the run can be gone on with.
"""

import asyncio
from typing import Annotated

import msgspec
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field

from mortice.agent.act import Ask
from mortice.agent.durable import Cancelled, RunFailed, Suspended
from mortice.agent.history import Answer, Event, Observation
from mortice.agent.home import checked_id, new_id
from mortice.agent.mcp.oauth import Auth, JwtVerifier, settings_of
from mortice.agent.record import timeline
from mortice.agent.service import Agents
from mortice.agent.spec import AgentSpec
from mortice.specs.errors import MorticeError


class RunAnswer(BaseModel):
    run: Annotated[str, Field(description="Id of the run.")]
    state: Annotated[
        str, Field(description="done, stopped (a budget ended it) or waiting (for a human's consent).")
    ]
    output: str
    reason: str = ""


class AgentServer:
    """Give `hear` to Agents as `on_event`; then `server` is ready to be served."""

    def __init__(self, spec: AgentSpec, auth: Auth | None = None) -> None:
        self._spec = spec
        self._heard: dict[str, asyncio.Queue[Event | Ask]] = {}
        self.agents: Agents | None = None
        self.server = MCPServer(
            "mortice-agent",
            instructions=f"Runs the agent {spec.name}. Each call is a run that survives crashes.",
            token_verifier=JwtVerifier(auth) if auth else None,
            auth=settings_of(auth) if auth else None,
        )
        description = spec.description or f"Hand a task to the agent {spec.name} and get its answer."
        self.server.tool(name=spec.name, description=description)(self._run)
        self.server.tool(name="continue_run", description="Go on with a run that waits or was cut off.")(
            self._continue
        )
        self.server.resource("run://{run}", mime_type="application/json", description="A run, turn by turn.")(
            self._show
        )

    def hear(self, run_id: str, event: Event | Ask) -> None:
        queue = self._heard.get(run_id)
        if queue is not None:
            queue.put_nowait(event)

    async def _run(
        self, task: Annotated[str, Field(description="The whole task, self-contained.")], ctx: Context
    ) -> RunAnswer:
        run_id = new_id()
        spec = msgspec.structs.replace(self._spec, task=task)
        return await self._watched(run_id, ctx, spec)

    async def _continue(self, run: Annotated[str, Field(description="Its id.")], ctx: Context) -> RunAnswer:
        return await self._watched(run, ctx, None)

    async def _watched(self, run_id: str, ctx: Context, spec: AgentSpec | None) -> RunAnswer:
        agents = self.agents
        assert agents is not None
        if run_id in self._heard:
            raise ToolError(f"run {run_id} is being watched by another call")
        queue = self._heard[run_id] = asyncio.Queue()
        turns = self._spec.budget.turns
        try:
            if spec is not None:
                await agents.start(spec, run_id)
            else:
                await agents.resume(checked_id(run_id))
            ended = asyncio.create_task(agents.result(run_id))
            while not ended.done():
                heard = asyncio.create_task(queue.get())
                await asyncio.wait({ended, heard}, return_when=asyncio.FIRST_COMPLETED)
                if not heard.done():
                    heard.cancel()
                    break
                event = heard.result()
                if isinstance(event, Ask):
                    ended.cancel()
                    reason = f"{event.tool} needs consent: mortice agent approve {run_id}, then continue_run"
                    return RunAnswer(run=run_id, state="waiting", output="", reason=reason)
                if isinstance(event, Answer):
                    await ctx.report_progress(event.turn + 1, turns, event.text[:200] or "thinking")
                elif isinstance(event, Observation):
                    await ctx.report_progress(event.turn + 1, turns, f"{event.tool}: {event.text[:200]}")
            result = await ended
        except (RunFailed, MorticeError) as error:
            raise ToolError(f"run {run_id}: {error}") from error
        except Cancelled as error:
            how = f"put aside: {error}; continue_run goes on" if isinstance(error, Suspended) else "cancelled"
            raise ToolError(f"run {run_id} was {how}") from error
        except asyncio.CancelledError:
            if spec is not None:  # the host gave the call up
                await asyncio.shield(agents.durable.cancel(run_id))
            raise
        finally:
            del self._heard[run_id]
        return RunAnswer(run=run_id, state=result.state, output=result.output, reason=result.reason)

    async def _show(self, run: str) -> str:
        agents = self.agents
        assert agents is not None
        record = await agents.durable.find(checked_id(run))
        if record is None:
            raise ValueError(f"there is no run {run}")
        return msgspec.json.encode(timeline(record, await agents.durable.steps(run))).decode()
