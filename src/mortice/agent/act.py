"""One call of a tool, from what the model asked for to what it observes. Runs inside one durable step."""

import asyncio
import time
from typing import Any

import msgspec

from mortice.agent.artifacts import Artifacts
from mortice.agent.history import Call, File, Observation
from mortice.agent.ledger import Ledger, key_of
from mortice.agent.policy import Policy, capped, digest_of, judge
from mortice.agent.runlog import RunLog
from mortice.agent.schema import Unchecked, mistakes
from mortice.agent.tool import CallContext, Output, Tool, ToolError
from mortice.agent.trace import Spans
from mortice.obs.log import Log

_log = Log("agent")


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask"):
    """The call waits for a human: this exact call, and why."""

    tool: str
    arguments: dict[str, Any]
    digest: str
    reason: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Which call of which run."""

    run_id: str
    turn: int
    index: int


Outcome = Observation | Ask


class Actor:
    """What a call needs besides itself."""

    def __init__(
        self, policy: Policy, ledger: Ledger, artifacts: Artifacts, spans: Spans, log: RunLog
    ) -> None:
        self._log = log
        self._policy = policy
        self._ledger = ledger
        self._artifacts = artifacts
        self._spans = spans

    async def act(
        self,
        place: Place,
        call: Call,
        tool: Tool | None,
        *,
        tainted: bool,
        approved: bool,
        timeout_s: float,
        known: list[str],
    ) -> Outcome:
        """Judge, write the intent down, do it, write the result down, make it fit. Never raises for what a tool does."""
        started = time.monotonic()
        problem = _problem(call, tool, known)
        if tool is None or problem is not None:
            return _error(place, call, problem or "", tool)
        verdict = judge(tool, self._policy, tainted=tainted)
        if verdict.action == "deny":
            return _error(place, call, verdict.reason, tool)
        if verdict.action == "ask" and not approved:
            return _ask(call, verdict.reason)
        context = CallContext(
            run_id=place.run_id,
            turn=place.turn,
            index=place.index,
            key=key_of(place.run_id, place.turn, place.index),
            timeout_s=min(tool.timeout_s, timeout_s),
        )
        intent = self._log.note(
            place.run_id,
            "tool_call",
            turn=place.turn,
            index=place.index,
            tool=call.tool,
            arguments=call.arguments,
            origin=tool.origin,
            effect=tool.effect,
            approved=approved,
            tainted=tainted,
        )
        if tool.effect != "write_external":
            output = await self._do(tool, call, context)
            return self._observation(place, call, tool, output, started)
        begun = await asyncio.to_thread(
            self._ledger.begin,
            place.run_id,
            place.turn,
            place.index,
            call.tool,
            call.arguments,
            idempotent=tool.idempotency != "none",
            approved=approved,
            one_time=tool.one_time,
        )
        if begun.action == "ask":
            return _ask(call, begun.reason)
        if begun.action == "refuse":
            return _error(place, call, begun.reason, tool)
        if begun.action == "replay":
            seen = msgspec.convert(begun.result, Observation)
            return msgspec.structs.replace(
                seen, turn=place.turn, call_id=call.id, replayed=True, seconds=time.monotonic() - started
            )
        await asyncio.wrap_future(intent)  # what reaches the world is on the disk before it begins
        output = await self._do(tool, call, context)
        seen = self._observation(place, call, tool, output, started)
        await asyncio.to_thread(self._ledger.finish, begun.key, msgspec.to_builtins(seen))
        return seen

    async def _do(self, tool: Tool, call: Call, context: CallContext) -> Output:
        with self._spans.tool(tool, call) as span:
            output = await _run(tool, call, context)
            span.ended(output)
        return output

    def _observation(
        self, place: Place, call: Call, tool: Tool, output: Output, started: float
    ) -> Observation:
        text, files = output.text, output.files
        most = self._policy.max_output_chars
        if len(text) > most:
            whole: File = self._artifacts.put(f"{call.tool}.txt", text.encode(), "text/plain")
            text, files = capped(text, most, whole.uri), (*files, whole)
        return Observation(
            turn=place.turn,
            call_id=call.id,
            tool=call.tool,
            text=text,
            is_error=output.is_error,
            origin=tool.origin,
            untrusted=tool.untrusted,
            files=files,
            seconds=time.monotonic() - started,
            sandbox_seconds=output.sandbox_seconds,
            changed=output.changed,
            epoch=output.epoch,
            strength=output.strength,
        )


async def _run(tool: Tool, call: Call, context: CallContext) -> Output:
    try:
        async with asyncio.timeout(context.timeout_s):
            return await tool.run(call.arguments, context)
    except TimeoutError:
        text = f"{tool.name} did not end within {context.timeout_s:g} s and was stopped"
        return Output(text=text, is_error=True)
    except ToolError as error:
        return Output(text=str(error), is_error=True)
    except Exception as error:
        _log.warning("a tool raised", tool=tool.name, kind=type(error).__name__)
        return Output(text=f"{type(error).__name__}: {error}"[:2000], is_error=True)


def _problem(call: Call, tool: Tool | None, known: list[str]) -> str | None:
    if tool is None:
        names = ", ".join(known[:50]) or "none"
        return f"there is no tool {call.tool[:100]}; there are: {names}"
    if call.malformed:
        return call.malformed
    try:
        wrong = mistakes(call.arguments, tool.parameters)
    except Unchecked as error:
        return f"{tool.name} cannot be called: {error}"
    return "the arguments are wrong: " + "; ".join(wrong) if wrong else None


def _error(place: Place, call: Call, text: str, tool: Tool | None) -> Observation:
    return Observation(
        turn=place.turn,
        call_id=call.id,
        tool=call.tool,
        text=text,
        is_error=True,
        origin=tool.origin if tool else "",
        untrusted=False,
    )


def _ask(call: Call, reason: str) -> Ask:
    return Ask(
        tool=call.tool, arguments=call.arguments, digest=digest_of(call.tool, call.arguments), reason=reason
    )
