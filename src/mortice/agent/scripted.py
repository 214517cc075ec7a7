"""A model that follows a script: each turn is a function of the turn's number and the conversation, so a resumed run
says what the first would have said.
"""

import asyncio
from typing import Any

from mortice.agent.history import Call, Usage
from mortice.agent.model import ModelError, Reply, ScriptedCall, ScriptSpec


class ScriptedModel:
    provider = "mortice.script"

    def __init__(self, spec: ScriptSpec) -> None:
        self.name = spec.name
        self._turns = spec.turns

    async def reply(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], *, turn: int, timeout_s: float
    ) -> Reply:
        last = next((m["content"] for m in reversed(messages) if m["role"] == "tool"), "")
        if not tools and messages and messages[-1]["content"].startswith("Summarise"):
            return _counted(messages, Reply(text=_gist(messages)))
        if turn >= len(self._turns):
            return _counted(messages, Reply(text=last or "The script has ended."))
        scripted = self._turns[turn]
        await asyncio.sleep(scripted.delay_s)
        if scripted.expect is not None and scripted.expect not in last:
            raise ModelError(
                f"turn {turn} expects {scripted.expect!r}, the last observation was {last[:500]!r}"
            )
        calls = (scripted.call, *scripted.calls) if scripted.call else scripted.calls
        made = tuple(_call(call, turn, index, last) for index, call in enumerate(calls))
        return _counted(messages, Reply(text=scripted.say.replace("{{last}}", last), calls=made))

    async def close(self) -> None:
        pass


def _call(call: ScriptedCall, turn: int, index: int, last: str) -> Call:
    return Call(id=f"call_{turn}_{index}", tool=call.tool, arguments=_filled(call.arguments, last))


def _filled(value: Any, last: str) -> Any:
    if isinstance(value, str):
        return value.replace("{{last}}", last)
    if isinstance(value, dict):
        return {key: _filled(item, last) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, last) for item in value]
    return value


def _counted(messages: list[dict[str, Any]], reply: Reply) -> Reply:
    """Words stand for tokens, so that budgets can be tried out."""
    read = sum(len(str(m.get("content") or "").split()) for m in messages)
    return Reply(
        text=reply.text,
        calls=reply.calls,
        usage=Usage(input_tokens=read, output_tokens=len(reply.text.split()) + 4 * len(reply.calls)),
        model="scripted",
    )


def _gist(messages: list[dict[str, Any]]) -> str:
    """The first line of everything that was said."""
    lines = [str(m.get("content") or "").strip().splitlines() for m in messages[:-1] if m["role"] != "system"]
    return "\n".join(f"- {first[0][:120]}" for first in lines if first)
