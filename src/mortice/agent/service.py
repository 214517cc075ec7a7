"""Puts the parts together: one of these runs agents and workflows in a process."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from mortice.agent.act import Actor, Ask
from mortice.agent.artifacts import Artifacts
from mortice.agent.durable import RESUMABLE, Durable, Json
from mortice.agent.durable_dbos import DbosDurable
from mortice.agent.endpoint import EndpointModel
from mortice.agent.epochs import Proof, prove, step_digest
from mortice.agent.history import Event
from mortice.agent.home import Home, checked_id
from mortice.agent.ledger import Ledger, Mode
from mortice.agent.logview import LogView
from mortice.agent.loop import BRANCH, Environment, Result, run_agent
from mortice.agent.machine import Boxes, SandboxTools
from mortice.agent.model import Model, ScriptSpec
from mortice.agent.retention import snapshots_of, tidy
from mortice.agent.runlog import RunLog
from mortice.agent.scripted import ScriptedModel
from mortice.agent.spec import AgentSpec
from mortice.agent.spec_machine import Machine
from mortice.agent.toolbox import OpenSources, Source, Toolbox, own_tools
from mortice.agent.workflow import Surroundings, run_workflow
from mortice.obs.log import Log
from mortice.sandbox import MachineState, Sandboxes, SandboxNotFound
from mortice.specs.errors import MorticeError, NotFound, RequestError, WrongState

if TYPE_CHECKING:
    from mortice.agent.mcp.consent import Consent
    from mortice.agent.mcp.host import McpHost

_log = Log("agent")
OpenBoxes = Callable[[], AbstractAsyncContextManager[Boxes]]


class Agents:
    """`async with Agents(home) as agents`: start, resume and branch runs; wait for their results.

    Runs of one process share its loop and its sandboxes; hundreds at once are no trouble. `takes_over`: it is going to
    resume runs or branch off them.
    """

    def __init__(
        self,
        home: Home,
        *,
        durable: Durable | None = None,
        consent: "Consent | None" = None,
        on_event: Callable[[str, Event | Ask], None] | None = None,
        open_boxes: OpenBoxes = Sandboxes,
        keep_sandbox: bool = False,
        takes_over: bool = False,
    ) -> None:
        self._home = home
        self._given = durable
        self._consent = consent
        self._on_event = on_event or (lambda run, event: None)
        self._open_boxes = open_boxes
        self._keep = keep_sandbox
        self._takes_over = takes_over
        self._boxes: Boxes | None = None
        self._boxes_lock = asyncio.Lock()
        self._log_view = LogView(home.audit)
        self._boxes_log: LogView | None = None
        self._proving = asyncio.Lock()
        self._machines: dict[str, SandboxTools] = {}
        self._stack = AsyncExitStack()
        self.artifacts = Artifacts(home.artifacts)

    async def __aenter__(self) -> "Agents":
        self._home.folder.mkdir(parents=True, exist_ok=True)
        if self._given is not None:
            self.durable: Durable = self._given
        else:
            self.durable = await self._stack.enter_async_context(
                DbosDurable(self._home.db, self._home.folder, takes_over=self._takes_over)
            )
        self.ledger = await asyncio.to_thread(Ledger, self._home.ledger)
        self._stack.callback(self.ledger.close)
        self.log = await asyncio.to_thread(RunLog, self._home.audit)
        self._stack.callback(self.log.close)
        environment = Environment(
            durable=self.durable,
            ledger=self.ledger,
            make_model=make_model,
            make_toolbox=self._make_toolbox,
            make_actor=lambda spec, spans: Actor(spec.policy, self.ledger, self.artifacts, spans, self.log),
            on_event=self._on_event,
            clean_up=self._clean_up,
            log=self.log,
            machine_of=self._machine_of,
        )
        surroundings = Surroundings(
            durable=self.durable, log=self.log, make_tools=self._flow_tools, machine_of=self._machine_of,
            keep=self._keep,
        )  # fmt: skip
        self.durable.bodies = {  # type: ignore[attr-defined]
            "agent": lambda payload: run_agent(environment, payload),
            "workflow": lambda payload: run_workflow(surroundings, payload),
        }
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.aclose()

    async def run(self, spec: AgentSpec, run_id: str) -> Result:
        """To the end. RunFailed if the harness could not go on."""
        await self.start(spec, run_id)
        return await self.result(run_id)

    async def start(self, spec: AgentSpec, run_id: str) -> None:
        """RequestError if a tool cannot be loaded or the id is taken: before anything is written down."""
        check_tools(spec)
        if not spec.task.strip() and not isinstance(spec.model, ScriptSpec):
            raise RequestError("an agent needs a task", param="task")
        payload = msgspec.to_builtins(spec)
        await self.durable.start("agent", checked_id(run_id), payload)
        self.log.note(
            run_id, "run_begun", task=spec.task, agent=spec.name, sha256=step_digest("spec", payload)
        )

    async def start_workflow(self, payload: Json, run_id: str) -> None:
        await self.durable.start("workflow", checked_id(run_id), payload)

    async def resume(self, run_id: str, *, unproven: bool = False) -> Proof | None:
        """Take the run over. Its journal, sandbox and audit log must match its last epoch, or WrongState says what does
        not; `unproven` goes on all the same. The proof; None where there is nothing to go on with.
        """
        record = await self.durable.find(run_id)
        if record is None or record.state not in RESUMABLE:
            await self.durable.resume(run_id)
            return None
        proof = await self.prove(run_id)
        if proof.altered and not unproven:
            raise WrongState(f"{proof.said()}; --unproven goes on with it all the same", param="id")
        await self.durable.resume(run_id)
        self.log.note(run_id, "run_resumed", proof=msgspec.to_builtins(proof))
        return proof

    async def prove(self, run_id: str) -> Proof:
        """Does the run match its last epoch, and does each of its sub-agents match its own?"""
        record = await self.durable.find(run_id)
        proof = await self._prove_alone(run_id, flow=record is not None and record.kind == "workflow")
        for child in await self.durable.children(run_id):
            proof = proof.with_agent(child.id, await self.prove(child.id))
        return proof

    async def _prove_alone(self, run_id: str, *, flow: bool) -> Proof:
        steps = await self.durable.steps(run_id)
        boxes = await self.boxes() if snapshots_of(steps) else None
        if self._boxes_log is None and isinstance(boxes, Sandboxes):
            self._boxes_log = LogView(boxes.home.audit)
        async with self._proving:  # one after the other: they read the same chains
            return await asyncio.to_thread(
                prove, run_id, steps, self._log_view, machine_of=self._machine_of, boxes_log=self._boxes_log,
                flow=flow,
            )  # fmt: skip

    async def result(self, run_id: str) -> Result:
        return msgspec.convert(await self.durable.result(run_id), Result)

    async def branch(self, run_id: str, turn: int, mode: Mode) -> str:
        """A new run that has the turns of another before `turn` behind it. What that one did to the outside world from
        there on is replayed, or done anew where the user says so. Gives the new run's id.
        """
        record = await self.durable.find(run_id)
        if record is None or record.kind != "agent":
            raise NotFound(f"there is no agent run {run_id!r}", param="id")
        steps = await self.durable.steps(run_id)
        starts = [step.number for step in steps if step.name == f"think {turn}"]
        if not starts:
            raise RequestError(f"{run_id!r} has no turn {turn}", param="turn")
        number = 1
        while await self.durable.find(f"{run_id}{BRANCH}{number}") is not None:
            number += 1
        new_id = f"{run_id}{BRANCH}{number}"
        await asyncio.to_thread(self.ledger.branch, new_id, run_id, turn, mode)
        await self.durable.fork(run_id, new_id, starts[0])
        return new_id

    def _make_toolbox(self, spec: AgentSpec, run_id: str, last_epoch: Callable[[], str | None]) -> Toolbox:
        return Toolbox(spec, self._sources(spec, run_id, last_epoch))

    def _sources(self, spec: AgentSpec, run_id: str, last_epoch: Callable[[], str | None]) -> OpenSources:
        async def open_sources(stack: AsyncExitStack) -> list[Source]:
            sources: list[Source] = []
            if "sandbox" in spec.tools:
                boxes = await self.boxes()
                machine = SandboxTools(boxes, run_id, spec.sandbox, self.artifacts, last_epoch)
                self._machines[run_id] = machine
                sources.append(machine)
            if spec.mcp_servers:
                sources.append(await stack.enter_async_context(self._host(spec, stack)))
            return sources

        return open_sources

    async def _flow_tools(
        self, run_id: str, name: str, machine: Machine, last_epoch: Callable[[], str | None]
    ) -> SandboxTools:
        return SandboxTools(await self.boxes(), f"{run_id}-{name}", machine, self.artifacts, last_epoch)

    def _host(self, spec: AgentSpec, stack: AsyncExitStack) -> "McpHost":
        # The SDK costs most of a second that runs without servers need not pay.
        from mortice.agent.mcp.consent import Nobody
        from mortice.agent.mcp.host import McpHost
        from mortice.agent.mcp.pins import Pins

        model = make_model(spec)
        stack.push_async_callback(model.close)
        return McpHost(
            spec.mcp_servers,
            pins=Pins(self._home.pins),
            artifacts=self.artifacts,
            consent=self._consent or Nobody(),
            model=model,
            tokens=self._home.tokens,
            boxes=self.boxes,
        )

    async def boxes(self) -> Boxes:
        async with self._boxes_lock:
            if self._boxes is None:
                self._boxes = await self._stack.enter_async_context(self._open_boxes())
            return self._boxes

    def _machine_of(self, snapshot: str) -> MachineState | None:
        """A snapshot as its manifest states it; None if it is gone or none of ours. SnapshotRefused if it was altered."""
        if not isinstance(self._boxes, Sandboxes):
            return None
        try:
            return self._boxes.snapshots.manifest(snapshot).state
        except SandboxNotFound:
            return None

    async def _clean_up(self, run_id: str) -> None:
        """A run has ended for good: so does its machine, whether this process or one before it began it."""
        machine = self._machines.pop(run_id, None)
        if self._keep or machine is None:
            return
        try:
            await machine.destroy()
        except MorticeError as error:
            _log.warning("a sandbox could not be ended", run=run_id, why=error.message)
        if self._given is None and isinstance(self._boxes, Sandboxes):
            await asyncio.to_thread(tidy, self._home, self._boxes)


def make_model(spec: AgentSpec) -> Model:
    return ScriptedModel(spec.model) if isinstance(spec.model, ScriptSpec) else EndpointModel(spec.model)


def check_tools(spec: AgentSpec) -> None:
    own_tools(spec)
    for sub in spec.agents:
        check_tools(sub)
