"""A run as its journal tells it: turns with thought, calls, observations, files, costs. Pure: records in, a timeline out."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from mortice.agent.budget import Price
from mortice.agent.durable import RunRecord, StepRecord
from mortice.agent.history import Answer, File, Observation

CallState = Literal["done", "error", "waiting", "refused", "running"]


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A call that waits for a human. `place` is what answers are addressed by."""

    place: str
    tool: str
    arguments: dict[str, Any]
    digest: str
    reason: str
    since_s: float


class TurnCall(msgspec.Struct, frozen=True, kw_only=True):
    tool: str
    arguments: dict[str, Any]
    state: CallState
    observation: str = ""
    origin: str = ""
    strength: str | None = None
    epoch: str | None = None
    changed: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    seconds: float = 0.0
    sandbox_seconds: float = 0.0
    replayed: bool = False
    child: str | None = None
    started_s: float = 0.0


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    turn: int
    thought: str
    model: str
    input_tokens: int
    output_tokens: int
    started_s: float
    seconds: float  # of the model
    notices: tuple[str, ...] = ()
    calls: tuple[TurnCall, ...] = ()
    summary: str | None = None  # history was compacted before this turn
    usd: float = 0.0  # of the model
    sealed: str = ""  # the audit record of the epoch before this turn, as CHAIN:NUMBER


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Of a workflow."""

    name: str
    started_s: float
    seconds: float
    output: Any = None
    error: str | None = None


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    kind: str
    name: str
    task: str
    state: str
    reason: str
    output: str
    error: str | None
    created_s: float
    updated_s: float
    parent: str | None
    branch_of: str | None
    turns: tuple[Turn, ...] = ()
    steps: tuple[Step, ...] = ()
    pending: Pending | None = None
    usd: float = 0.0


def pending(steps: Sequence[StepRecord]) -> Pending | None:
    """The question that the latest steps ask and that nobody has answered yet."""
    for step in reversed(steps):
        if step.name == "DBOS.recv":
            return None
        if step.name.startswith("ask ") and isinstance(step.output, dict):
            asked = {key: step.output[key] for key in ("tool", "arguments", "digest", "reason")}
            return Pending(place=step.name.removeprefix("ask "), since_s=step.ended_s, **asked)
    return None


def timeline(run: RunRecord, steps: Sequence[StepRecord]) -> Timeline:
    payload = run.payload if isinstance(run.payload, dict) else {}
    result = run.output if isinstance(run.output, dict) else {}
    asked = pending(steps) if run.state == "running" else None
    price = msgspec.convert(payload.get("price") or {}, Price)
    turns = _turns(run.id, steps, asked, price) if run.kind == "agent" else ()
    output = result.get("output")
    return Timeline(
        id=run.id,
        kind=run.kind,
        name=str(payload.get("name") or payload.get("workflow") or run.kind),
        task=str(payload.get("task") or ""),
        state="waiting" if asked else str(result.get("state") or run.state),
        reason=str(result.get("reason") or (run.error if run.state == "suspended" else "") or ""),
        output=output
        if isinstance(output, str)
        else ""
        if output is None
        else msgspec.json.encode(output).decode(),
        error=run.error if run.state == "failed" else None,
        created_s=run.created_s,
        updated_s=run.updated_s,
        parent=run.parent,
        branch_of=run.forked_from,
        turns=turns,
        steps=tuple(map(_step, steps)) if run.kind == "workflow" else (),
        pending=asked,
        usd=sum(turn.usd for turn in turns),
    )


def _turns(run_id: str, steps: Sequence[StepRecord], asked: Pending | None, price: Price) -> tuple[Turn, ...]:
    by_name = {step.name: step for step in steps}
    turns = []
    for step in steps:
        if not step.name.startswith("think ") or not isinstance(step.output, dict):
            continue
        answer = msgspec.convert(step.output["answer"], Answer)
        summary = by_name.get(f"compact {answer.turn}")
        turns.append(
            Turn(
                turn=answer.turn,
                thought=answer.text,
                model=answer.model,
                input_tokens=answer.usage.input_tokens,
                output_tokens=answer.usage.output_tokens,
                started_s=step.started_s,
                seconds=answer.seconds,
                notices=tuple(step.output.get("notices") or ()),
                calls=tuple(_calls(run_id, answer, step.output, by_name, steps, asked)),
                summary=summary.output.get("summary") if summary and summary.output else None,
                usd=price.of(answer.usage),
                sealed=_sealed(step.output.get("epoch")),
            )
        )
    return tuple(turns)


def _sealed(epoch: Any) -> str:
    return f"{epoch['chain']}:{epoch['seq']}" if isinstance(epoch, dict) else ""


def _calls(
    run_id: str,
    answer: Answer,
    thought: dict[str, Any],
    by_name: dict[str, StepRecord],
    steps: Sequence[StepRecord],
    asked: Pending | None,
) -> list[TurnCall]:
    found = []
    agents = thought.get("agents") or ()
    for index, call in enumerate(answer.calls):
        place = f"{answer.turn}.{index}"
        step = by_name.get(f"approved {place}") or by_name.get(f"call {place}")
        output = step.output if step and isinstance(step.output, dict) else {}
        seen = msgspec.convert(output, Observation) if output.get("type") == "observation" else None
        child = f"{run_id}.{place}" if index < len(agents) and agents[index] else None
        state: CallState = "running"
        if seen is not None:
            state = "error" if seen.is_error else "done"
        elif asked is not None and asked.place == place:
            state = "waiting"
        elif output.get("type") == "ask":
            state = "refused"
        elif child is not None and _joined(steps, child):
            state = "done"
        found.append(
            TurnCall(
                tool=call.tool,
                arguments=call.arguments,
                state=state,
                observation=seen.text if seen else str(output.get("reason") or ""),
                origin=seen.origin if seen else "",
                strength=seen.strength if seen else None,
                epoch=seen.epoch if seen else None,
                changed=seen.changed if seen else (),
                files=seen.files if seen else (),
                seconds=seen.seconds if seen else 0.0,
                sandbox_seconds=seen.sandbox_seconds if seen else 0.0,
                replayed=seen.replayed if seen else False,
                child=child,
                started_s=step.started_s if step else 0.0,
            )
        )
    return found


def _joined(steps: Sequence[StepRecord], child: str) -> bool:
    """Has the parent taken its child's result? Results are steps after the one that began it."""
    return any(step.name == "DBOS.getResult" for step in steps) and bool(child)


def _step(step: StepRecord) -> Step:
    return Step(
        name=step.name,
        started_s=step.started_s,
        seconds=max(step.ended_s - step.started_s, 0.0),
        output=step.output,
        error=step.error,
    )
