"""The agent: think, act, observe, until the model is done or a budget is.

An agent is a durable run whose every contact with the world is a step: `think T` asks the model, `call T.I` does one
call, `ask T.I` puts it before a human. What this code decides, it decides from what those steps gave, so a run that is
resumed takes the same way again without doing anything twice.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from mortice.agent.act import Actor, Ask, Place
from mortice.agent.budget import Spent, seconds_left, spent, used_up
from mortice.agent.durable import Durable, Json, RunFailed, Suspended
from mortice.agent.epochs import Epoch, JournalDigest, step_digest
from mortice.agent.guards import EMPTY_STOP_AT, empty_answers, guard
from mortice.agent.history import (
    Answer,
    Call,
    Compaction,
    Event,
    File,
    History,
    Notice,
    Observation,
    Task,
)
from mortice.agent.ledger import Ledger
from mortice.agent.model import Model, ModelUnreachable
from mortice.agent.policy import canonical, may_run_together
from mortice.agent.runlog import RunLog
from mortice.agent.spec import AgentSpec
from mortice.agent.tool import spec_of
from mortice.agent.toolbox import Toolbox
from mortice.agent.trace import Spans
from mortice.sandbox import MachineState

BRANCH = "~"  # ids of branches are PARENT~N
MAX_DEPTH = 3
KEEP_EVENTS = 6
MAX_CALL_S = 3600.0
OnEvent = Callable[[str, Event | Ask], None]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run. `done`: the model gave an answer. `stopped`: a budget or a guard ended it; `reason` says which."""

    state: Literal["done", "stopped"]
    output: str
    reason: str = ""
    turns: int = 0
    spent: Spent = Spent()
    files: tuple[File, ...] = ()
    tainted: bool = False


class Thought(msgspec.Struct, frozen=True, kw_only=True):
    """What the step `think` writes down: the answer, whether its calls may run together, and what tools changed before."""

    answer: Answer
    together: bool
    notices: tuple[str, ...] = ()
    agents: tuple[str | None, ...] = ()  # by call: the sub-agent it runs
    epoch: Epoch | None = None  # of all before this turn


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What runs share in a process. `clean_up` is told when a run has ended for good."""

    durable: Durable
    ledger: Ledger
    make_model: Callable[[AgentSpec], Model]
    make_toolbox: Callable[[AgentSpec, str, Callable[[], str | None]], Toolbox]
    make_actor: Callable[[AgentSpec, Spans], Actor]
    on_event: OnEvent
    clean_up: Callable[[str], Awaitable[None]]
    log: RunLog
    machine_of: Callable[[str], MachineState | None]  # of a snapshot


async def run_agent(environment: Environment, payload: Json) -> Json:
    """Body of runs of kind `agent`; the payload is an AgentSpec."""
    spec = msgspec.convert(payload, AgentSpec)
    run = _Run(environment, spec)
    try:
        with run.spans.agent(spec.name, run.run_id):
            result = await run.go()
        environment.log.note(
            run.run_id, "run_ended", state=result.state, reason=result.reason, output=result.output
        )
    except Suspended as error:  # its sandbox is kept for when it goes on
        environment.log.note(run.run_id, "run_suspended", reason=error.reason)
        raise
    except Exception as error:
        environment.log.note(run.run_id, "run_failed", error=str(error))
        await environment.clean_up(run.run_id)
        raise
    finally:
        await run.close()
    await environment.clean_up(run.run_id)
    return msgspec.to_builtins(result)


class _Run:
    def __init__(self, environment: Environment, spec: AgentSpec) -> None:
        self._env = environment
        self._durable = environment.durable
        self._spec = spec
        self.run_id = environment.durable.run_id
        self.spans = Spans()
        self._history = History()
        self._model = environment.make_model(spec)
        self._toolbox = environment.make_toolbox(spec, self.run_id, self._last_epoch)
        self._actor = environment.make_actor(spec, self.spans)
        self._log = environment.log
        self._digest = JournalDigest()

    async def close(self) -> None:
        await self._toolbox.close()
        await self._model.close()

    async def go(self) -> Result:
        self._add(Task(text=self._spec.task))
        turn = 0
        while True:
            over = used_up(self._spec.budget, self._spent())
            if over is not None:
                return self._end("stopped", f"budget used up: {over}")
            await self._compact(turn)
            thought = await self._think(turn)
            for text in thought.notices:
                self._add(Notice(turn=turn, text=text))
            self._add(thought.answer)
            calls = thought.answer.calls
            if not calls:
                if thought.answer.text.strip():
                    return self._end("done", "")
                if empty_answers(self._history.events) >= EMPTY_STOP_AT:
                    return self._end("stopped", "the model gave nothing, twice")
                self._add(Notice(turn=turn, text="Your answer was empty. Call a tool or give the answer."))
            stop = await self._observe(turn, thought)
            if stop is not None:
                return self._end("stopped", stop)
            turn += 1

    async def _think(self, turn: int) -> Thought:
        timeout_s = seconds_left(self._spec.budget, self._spent(), cap=self._spec.think_timeout_s)
        messages = self._history.messages(self._spec.system)
        journal, snapshot = self._digest.seal(), self._last_epoch()

        async def ask() -> Json:
            await self._toolbox.open()
            sealing = asyncio.ensure_future(self._seal(turn, journal, snapshot))
            await self._toolbox.refresh()
            notices = (*await self._facts(turn), *self._toolbox.drain())
            tools = self._toolbox.tools()
            started = time.monotonic()
            seen = messages + [{"role": "user", "content": f"[notice] {text}"} for text in notices]
            self._note(
                "model_call",
                turn=turn,
                model=self._model.name,
                provider=self._model.provider,
                num_messages=len(seen),
                sha256_of_messages=step_digest("messages", seen),
            )
            with self.spans.chat(self._model.name, self._model.provider, turn) as span:
                reply = await self._model.reply(
                    seen, [spec_of(t) for t in tools], turn=turn, timeout_s=timeout_s
                )
                span.ended(reply, usd=self._spec.price.of(reply.usage))
            answer = Answer(
                turn=turn,
                text=reply.text,
                calls=reply.calls[: self._spec.policy.max_calls_per_answer],
                usage=reply.usage,
                model=reply.model or self._model.name,
                seconds=time.monotonic() - started,
            )
            by_name = {tool.name: tool for tool in tools}
            wanted = [by_name.get(call.tool) for call in answer.calls]
            thought = Thought(
                answer=answer,
                together=may_run_together(wanted, self._spec.policy),
                notices=notices,
                agents=tuple(tool.agent if tool else None for tool in wanted),
                epoch=await sealing,
            )
            return msgspec.to_builtins(thought)

        def said(output: Json) -> dict[str, Any]:
            answer = msgspec.convert(output, Thought).answer
            calls = [{"tool": call.tool, "arguments": call.arguments} for call in answer.calls]
            return {
                "model": answer.model, "seconds": answer.seconds, "text": answer.text, "calls": calls,
                "input_tokens": answer.usage.input_tokens, "output_tokens": answer.usage.output_tokens,
            }  # fmt: skip

        return msgspec.convert(await self._step(f"think {turn}", ask, "model_answer", said), Thought)

    async def _seal(self, turn: int, journal: str, snapshot: str | None) -> Epoch:
        """The manifest of all before this turn: on the disk when this returns."""
        machine = await asyncio.to_thread(self._env.machine_of, snapshot) if snapshot else None
        state = msgspec.to_builtins(machine)
        seq, head = await self._log.safe(self.run_id, "epoch", turn=turn, journal=journal, machine=state)
        return Epoch(turn=turn, journal=journal, machine=machine, chain=self._log.chain, seq=seq, head=head)

    async def _step(
        self,
        name: str,
        act: Callable[[], Awaitable[Json]],
        kind: str,
        said: Callable[[Json], dict[str, Any]],
    ) -> Json:
        """A durable step whose outcome stands in the audit log too, with its digest."""

        async def noted() -> Json:
            try:
                output = await act()
            except ModelUnreachable as error:
                raise Suspended(f"the model cannot be reached: {error}") from error
            self._note(kind, step=name, sha256=step_digest(name, output), **said(output))
            return output

        output = await self._durable.step(name, noted)
        self._digest.add(name, output)
        return output

    def _note(self, kind: str, **fields: Any) -> None:
        self._log.note(self.run_id, kind, **fields)

    async def _observe(self, turn: int, thought: Thought) -> str | None:
        """Carry the calls out; why the run must stop, or None."""
        calls = thought.answer.calls
        guarded = guard(self._history.events, calls)
        if guarded.action == "stop":
            return guarded.reason
        if guarded.action == "tell":
            self._add(Notice(turn=turn, text=guarded.reason))
        places = [Place(run_id=self.run_id, turn=turn, index=i) for i in range(len(calls))]
        if thought.together:
            for observation in await self._all(places, calls, thought.agents):
                self._add(observation)
            return None
        for index, call in enumerate(calls):
            over = used_up(msgspec.structs.replace(self._spec.budget, turns=10**9), self._spent())
            if over is not None:
                return f"budget used up: {over}"
            observations = await self._all([places[index]], (call,), (thought.agents[index],))
            self._add(observations[0])
        return None

    async def _all(
        self, places: list[Place], calls: tuple[Call, ...], agents: tuple[str | None, ...]
    ) -> list[Observation]:
        """All at once: children are begun first, in order, so that a run done again meets its steps in the same order."""
        jobs = list(zip(places, calls, agents, strict=True))
        begun = {p.index: await self._begin(p, call, agent) for p, call, agent in jobs if agent}
        plain = await asyncio.gather(*(self._call(p, call) for p, call, agent in jobs if not agent))
        rest = iter(plain)
        return [
            await self._child(p, call, begun[p.index]) if agent else next(rest) for p, call, agent in jobs
        ]

    async def _call(self, place: Place, call: Call) -> Observation:
        name = f"{place.turn}.{place.index}"
        outcome = await self._act(f"call {name}", place, call, approved=False)
        if isinstance(outcome, Observation):
            return outcome
        verdict = await self._ask(name, outcome)
        if verdict is not None:
            return _refused(place, call, verdict)
        outcome = await self._act(f"approved {name}", place, call, approved=True)
        if isinstance(outcome, Observation):
            return outcome
        return _refused(place, call, f"it still needs consent: {outcome.reason}")

    async def _act(self, step: str, place: Place, call: Call, *, approved: bool) -> Observation | Ask:
        tainted = self._history.tainted
        timeout_s = seconds_left(self._spec.budget, self._spent(), cap=MAX_CALL_S)

        async def act() -> Json:
            await self._toolbox.open()
            tools = {tool.name: tool for tool in self._toolbox.tools()}
            outcome = await self._actor.act(
                place,
                call,
                tools.get(call.tool),
                tainted=tainted,
                approved=approved,
                timeout_s=timeout_s,
                known=list(tools),
            )
            return msgspec.to_builtins(outcome)

        return msgspec.convert(await self._step(step, act, "tool_result", _outcome), Observation | Ask)

    async def _ask(self, name: str, ask: Ask) -> str | None:
        """Put a call before a human and wait; why it was refused, or None. What is approved is the digest of the call."""
        self._env.on_event(self.run_id, ask)

        async def write() -> Json:
            return msgspec.to_builtins(ask)

        await self._step(f"ask {name}", write, "consent_asked", _outcome)
        answer = await self._durable.recv(f"approve {name}", self._spec.policy.approval_timeout_s)
        if not isinstance(answer, dict):
            return "nobody answered in time"
        if answer.get("digest") != ask.digest:
            return "the consent was for another call"
        if answer.get("approve") is not True:
            return str(answer.get("reason") or "a human said no")
        return None

    async def _begin(self, place: Place, call: Call, agent: str) -> "AgentSpec | str":
        """Start a sub-agent: a run of its own, with its own journal and budget. Its spec, or why there is none."""
        task = call.arguments.get("task")
        if not isinstance(task, str) or not task.strip():
            return "a sub-agent needs a task"
        if self._spec.depth + 1 > MAX_DEPTH:
            return f"agents may be nested {MAX_DEPTH} deep"
        sub = next(sub for sub in self._spec.agents if sub.name == agent)
        child = msgspec.structs.replace(sub, task=task, depth=self._spec.depth + 1)
        await self._durable.spawn("agent", _child_id(place), msgspec.to_builtins(child))
        return child

    async def _child(self, place: Place, call: Call, sub: "AgentSpec | str") -> Observation:
        if isinstance(sub, str):
            return _refused(place, call, sub)
        try:
            result = msgspec.convert(await self._durable.join(_child_id(place)), Result)
        except RunFailed as error:
            return _refused(place, call, f"the agent {sub.name} failed: {error}")
        return Observation(
            turn=place.turn,
            call_id=call.id,
            tool=call.tool,
            text=result.output or f"[{result.state}] {result.reason}",
            is_error=result.state != "done",
            origin="agent",
            untrusted=result.tainted,
            files=result.files,
            seconds=result.spent.seconds,
            sandbox_seconds=result.spent.sandbox_seconds,
            tokens=result.spent.tokens,
            usd=result.spent.usd,
        )

    async def _compact(self, turn: int) -> None:
        if self._history.num_chars() <= self._spec.compact_above_chars:
            return
        upto = self._history.cut(KEEP_EVENTS)
        if upto == 0:
            return
        head = History(self._history.events[:upto])
        request = {
            "role": "user",
            "content": "Summarise what was done and found so far, for yourself: facts, results, what is left to do.",
        }
        messages = [*head.messages(self._spec.system), request]

        async def ask() -> Json:
            started = time.monotonic()
            reply = await self._model.reply(messages, [], turn=turn, timeout_s=self._spec.think_timeout_s)
            event = Compaction(
                turn=turn,
                summary=reply.text or "(nothing)",
                upto=upto,
                usage=reply.usage,
                seconds=time.monotonic() - started,
            )
            return msgspec.to_builtins(event)

        output = await self._step(f"compact {turn}", ask, "compacted", lambda _: {"turn": turn, "upto": upto})
        self._add(msgspec.convert(output, Compaction))

    async def _facts(self, turn: int) -> list[str]:
        """A branch is told, at its first turn, what happened after the point where it left."""
        if BRANCH not in self.run_id:
            return []
        facts = await asyncio.to_thread(self._env.ledger.facts, self.run_id, at_turn=turn)
        if not facts:
            return []
        said = "; ".join(f"{f.tool} with {canonical(f.arguments).decode()[:500]}" for f in facts)
        return [f"These have already happened, in an earlier branch of this work: {said}"]

    def _last_epoch(self) -> str | None:
        """Snapshot of the sandbox after the last committed call that left one."""
        epochs = (e.epoch for e in reversed(self._history.events) if isinstance(e, Observation) and e.epoch)
        return next(epochs, None)

    def _spent(self) -> Spent:
        return spent(self._history.events, self._spec.price)

    def _add(self, event: Event) -> None:
        self._history.add(event)
        self._env.on_event(self.run_id, event)

    def _end(self, state: Literal["done", "stopped"], reason: str) -> Result:
        events = self._history.events
        answers = [e.text for e in events if isinstance(e, Answer) and e.text.strip()]
        files = {f.uri: f for e in events if isinstance(e, Observation) for f in e.files}
        return Result(
            state=state,
            output=answers[-1] if answers else "",
            reason=reason,
            turns=self._history.turns,
            spent=self._spent(),
            files=tuple(files.values()),
            tainted=self._history.tainted,
        )


def _outcome(output: Json) -> dict[str, Any]:
    """Of a call, for the audit log."""
    if output["type"] == "ask":
        return {name: output[name] for name in ("tool", "arguments", "digest", "reason")}
    names = (
        "turn",
        "tool",
        "text",
        "is_error",
        "origin",
        "untrusted",
        "changed",
        "epoch",
        "strength",
        "replayed",
    )
    return {name: output[name] for name in (*names, "seconds", "sandbox_seconds")}


def _child_id(place: Place) -> str:
    return f"{place.run_id}.{place.turn}.{place.index}"


def _refused(place: Place, call: Call, reason: str) -> Observation:
    return Observation(
        turn=place.turn, call_id=call.id, tool=call.tool, text=reason, is_error=True, untrusted=False
    )
