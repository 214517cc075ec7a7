"""What a call may do without a human: pure rules over the tool, the run's settings and what the model has read."""

import hashlib
from typing import Any, Literal

import msgspec

from mortice.agent.tool import Tool


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`external`: calls that write to the outside world are asked about always, once the model has read something a
    stranger may have written (tainted), or never. Names are those the model sees.
    """

    external: Literal["ask", "tainted", "allow"] = "tainted"
    approve: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    approval_timeout_s: float = 24 * 3600.0
    max_calls_per_answer: int = 16
    max_output_chars: int = 20_000


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    action: Literal["allow", "ask", "deny"]
    reason: str = ""


def judge(tool: Tool, policy: Policy, *, tainted: bool) -> Verdict:
    if tool.name in policy.deny:
        return Verdict(action="deny", reason=f"{tool.name} is not allowed in this run")
    if tool.approve or tool.name in policy.approve:
        return Verdict(action="ask", reason=f"{tool.name} is asked about before each call")
    if tool.effect == "write_external":
        if policy.external == "ask":
            return Verdict(action="ask", reason=f"{tool.name} writes to the outside world")
        if policy.external == "tainted" and tainted:
            reason = f"{tool.name} writes to the outside world, and the model has read what a stranger may have written"
            return Verdict(action="ask", reason=reason)
    return Verdict(action="allow")


def may_run_together(tools: list[Tool | None], policy: Policy) -> bool:
    """Calls run at the same time only if none of them writes and none is asked about."""
    return len(tools) > 1 and all(
        tool is not None
        and tool.effect in ("pure", "read")
        and judge(tool, policy, tainted=True).action == "allow"
        for tool in tools
    )


def digest_of(tool: str, arguments: dict[str, Any]) -> str:
    """Of the exact call: what a human approved is what is done."""
    return hashlib.sha256(canonical({"tool": tool, "arguments": arguments})).hexdigest()


def canonical(value: Any) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def capped(text: str, most: int, uri: str | None) -> str:
    """Head and tail of a text that is too long, and where the whole lies."""
    if len(text) <= most:
        return text
    head, tail = text[: most * 2 // 3], text[len(text) - most // 3 :]
    omitted = len(text) - len(head) - len(tail)
    where = f", full text at {uri}" if uri else ""
    return f"{head}\n[... {omitted} characters omitted{where} ...]\n{tail}"
