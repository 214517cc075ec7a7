"""Durable workflows: fixed steps in plain Python, with retries, compensation and human approval.

    async def order(flow: Flow, order: dict) -> dict:
        stock = await flow.step(reserve, order["item"], undo=release)
        await flow.approve("charge the card", {"amount": order["amount"]})
        receipt = await flow.step(charge, order, retry=Retry(attempts=3), undo=refund)
        return {"stock": stock, "receipt": receipt}

The function is run again from the top after a crash; steps that are done give what they gave. It must not look at
clocks, chance or the world except through `flow`. When it fails, what was done is undone, latest first.
"""

import asyncio
import inspect
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from mortice.agent.durable import Cancelled, Durable, Json, RunFailed, StepFailed
from mortice.agent.epochs import Epoch, FlowDigest, step_digest
from mortice.agent.flow_box import FlowBox
from mortice.agent.machine import SandboxTools
from mortice.agent.policy import digest_of
from mortice.agent.runlog import RunLog
from mortice.agent.spec import AgentSpec
from mortice.agent.spec_machine import Machine
from mortice.agent.toolbox import load_function
from mortice.agent.trace import Spans
from mortice.sandbox import MachineState
from mortice.specs.errors import RequestError

Act = Callable[..., Any]


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """`attempts` in all; the pause grows by `factor`. Names of exceptions in `only`; empty: any."""

    attempts: int = 1
    pause_s: float = 0.5
    factor: float = 2.0
    only: tuple[str, ...] = ()


class Refused(Exception):
    """A human said no, or nobody answered in time."""


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What workflows share in a process. `make_tools`: of a sandbox of a run. `machine_of`: of a snapshot."""

    durable: Durable
    log: RunLog
    make_tools: Callable[[str, str, Machine, Callable[[], str | None]], Awaitable[SandboxTools]]
    machine_of: Callable[[str], MachineState | None]
    keep: bool = False  # sandboxes, at the end


class Flow:
    """What a workflow may do. Steps are named by their function, or by `name` where one comes more than once."""

    def __init__(self, around: Surroundings, spans: Spans) -> None:
        self._around = around
        self._durable = around.durable
        self._spans = spans
        self._digest = FlowDigest()
        self._sealing = asyncio.Lock()
        self._boxes: list[FlowBox] = []
        self._undo: list[tuple[str, Act, tuple[Any, ...]]] = []
        self._names: dict[str, int] = {}

    @property
    def run_id(self) -> str:
        return self._durable.run_id

    async def step(
        self,
        act: Act,
        *args: Any,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        timeout_s: float = 300.0,
        undo: Act | None = None,
        name: str | None = None,
    ) -> Any:
        """`act(*args)`, sync or async, its result JSON. `undo(result, *args)` is called if the workflow fails later.
        StepFailed once every attempt has failed.
        """
        name = self._unique(name or act.__name__)
        pause_s = retry.pause_s
        for attempt in range(1, retry.attempts + 1):
            label = name if attempt == 1 else f"{name} (attempt {attempt})"
            try:
                result = await self._step(label, lambda: self._do(name, act, args, timeout_s))
                break
            except StepFailed as error:
                if attempt == retry.attempts or (retry.only and error.kind not in retry.only):
                    raise
                await self._durable.sleep(pause_s)
                pause_s *= retry.factor
        if undo is not None:
            self._undo.append((name, undo, (result, *args)))
        return result

    async def approve(self, what: str, details: Json = None, *, timeout_s: float = 24 * 3600.0) -> str:
        """Wait for a human. Gives who said yes; Refused if none did. The consent is to exactly these details."""
        name = self._unique("approval")
        ask = {
            "type": "ask",
            "tool": what,
            "arguments": {"details": details},
            "digest": digest_of(what, {"details": details}),
            "reason": "the workflow asks",
        }

        async def write() -> Json:
            return ask

        await self._step(f"ask {name}", write)
        answer = await self._durable.recv(f"approve {name}", timeout_s)
        if not isinstance(answer, dict):
            raise Refused(f"{what}: nobody answered in time")
        if answer.get("digest") != ask["digest"]:
            raise Refused(f"{what}: the consent was for something else")
        if answer.get("approve") is not True:
            raise Refused(f"{what}: {answer.get('reason') or 'a human said no'}")
        return str(answer.get("by") or "")

    async def agent(self, spec: AgentSpec, task: str) -> Any:
        """Run an agent as a child and give its Result as plain values. RunFailed if it could not go on."""
        child = f"{self.run_id}.{self._unique(spec.name)}"
        await self._durable.spawn(
            "agent", child, msgspec.to_builtins(msgspec.structs.replace(spec, task=task))
        )
        return await self._durable.join(child)

    async def together(self, *acts: tuple[Any, ...], retry: Retry = Retry()) -> list[Any]:  # noqa: B008
        """Several `(act, *args)` at once; results in order. The first failure fails all, once the others have ended."""
        names = [self._unique(act[0].__name__) for act in acts]
        jobs = [
            self._step(name, lambda name=name, act=act: self._tried(name, act, retry))  # type: ignore[misc]
            for name, act in zip(names, acts, strict=True)
        ]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    async def sleep(self, seconds: float) -> None:
        await self._durable.sleep(seconds)

    async def wait_for(self, topic: str, timeout_s: float) -> Json:
        """The next message sent to the run under the topic, or None."""
        return await self._durable.recv(topic, timeout_s)

    async def now(self) -> float:
        """Seconds since the epoch, the same whenever the workflow is run again."""

        async def clock() -> Json:
            return time.time()

        return float(await self._step(self._unique("now"), clock))

    def sandbox(self, machine: Machine = Machine(), *, name: str = "box") -> FlowBox:  # noqa: B008 - frozen
        """A machine for code nobody trusts. It is made at its first use and ends with the workflow."""
        name = self._unique(name)

        async def make(name: str, machine: Machine, last: Callable[[], str | None]) -> SandboxTools:
            return await self._around.make_tools(self.run_id, name, machine, last)

        box = FlowBox(self.run_id, name, machine, make=make, step=self._one_use, seal=self._seal)
        self._boxes.append(box)
        return box

    async def close(self) -> None:
        """End the sandboxes."""
        for box in self._boxes if not self._around.keep else ():
            await box.destroy()

    async def _one_use(self, name: str, act: Callable[[], Awaitable[Json]]) -> Json:
        async with self._sealing:  # an epoch follows the one before it
            return await self._step(name, act)

    async def _seal(self, snapshot: str | None) -> Epoch:
        number, journal, steps = self._digest.seal()
        machine = await asyncio.to_thread(self._around.machine_of, snapshot) if snapshot else None
        log = self._around.log
        seq, head = await log.safe(
            self.run_id, "epoch", turn=number, journal=journal, machine=msgspec.to_builtins(machine)
        )
        return Epoch(
            turn=number, journal=journal, machine=machine, chain=log.chain, seq=seq, head=head, steps=steps
        )

    async def _step(self, name: str, act: Callable[[], Awaitable[Json]]) -> Json:
        """A durable step whose digest stands in the audit log; what it gives is the same the first time and from the
        journal."""

        async def noted() -> Json:
            note = partial(self._around.log.note, self.run_id, "workflow_step", step=name)
            try:
                output = json.loads(json.dumps(await act(), allow_nan=False))
            except Cancelled:
                raise
            except Exception as error:
                note(error=type(error).__name__)
                raise
            note(sha256=step_digest(name, output))
            return output

        output = await self._durable.step(name, noted)
        self._digest.add(name, output)
        return output

    async def compensate(self) -> list[str]:
        """Undo what was done, latest first; the names of steps that could not be undone."""
        failed = []
        while self._undo:
            name, undo, args = self._undo.pop()
            try:
                await self.step(undo, *args, retry=Retry(attempts=3), name=f"undo {name}")
            except StepFailed:
                failed.append(name)
        return failed

    async def _tried(self, name: str, act: tuple[Any, ...], retry: Retry) -> Json:
        """Attempts within one step: steps at once must not take new places in the journal."""
        pause_s = retry.pause_s
        for _ in range(retry.attempts - 1):
            try:
                return await self._do(name, act[0], act[1:], 300.0)
            except Exception as error:
                if retry.only and type(error).__name__ not in retry.only:
                    raise
                await asyncio.sleep(pause_s)
                pause_s *= retry.factor
        return await self._do(name, act[0], act[1:], 300.0)

    async def _do(self, name: str, act: Act, args: tuple[Any, ...], timeout_s: float) -> Json:
        with self._spans.step(name):
            async with asyncio.timeout(timeout_s):
                if inspect.iscoroutinefunction(act):
                    return await act(*args)
                return await asyncio.to_thread(act, *args)

    def _unique(self, name: str) -> str:
        self._names[name] = self._names.get(name, 0) + 1
        return name if self._names[name] == 1 else f"{name} {self._names[name]}"


Program = Callable[[Flow, Any], Awaitable[Json]]


async def run_workflow(around: Surroundings, payload: Json) -> Json:
    """Body of runs of kind `workflow`; the payload names the function and has its input."""
    program = load_workflow(payload["workflow"])
    spans = Spans()
    flow = Flow(around, spans)
    with spans.workflow(payload["workflow"].rpartition(":")[2], flow.run_id):
        try:
            result = {"state": "done", "output": await program(flow, payload["input"])}
        except Cancelled:  # its sandboxes are kept for when it goes on
            raise
        except Exception as error:
            stuck = await flow.compensate()
            trouble = f"; could not be undone: {', '.join(stuck)}" if stuck else ""
            reason = str(error) if isinstance(error, StepFailed | Refused | RunFailed) else repr(error)
            result = {"state": "stopped", "output": None, "reason": f"{reason}{trouble}"}
        await flow.close()
        return result


def load_workflow(name: str) -> Program:
    """`PATH.py:FUNCTION` or `MODULE:FUNCTION`, an async function of a Flow and an input."""
    program = load_function(name)
    if not inspect.iscoroutinefunction(program) or len(inspect.signature(program).parameters) != 2:
        raise RequestError(f"{name}: a workflow is `async def name(flow, input)`", param="workflow")
    return program
