"""Tools of the tests next door. What they do to the world is a line in a file."""

import asyncio
import os
import time
from pathlib import Path

from mortice.agent.tool import tool

_looking = 0


def _log(line: str) -> None:
    with open(os.environ["AGENT_TEST_LOG"], "a") as file:
        file.write(line + "\n")


@tool(effect="pure")
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@tool(effect="read")
async def look(name: str) -> str:
    """Look, and say how many look at once."""
    global _looking
    _looking += 1
    await asyncio.sleep(0.02)
    seen = f"{name} of {_looking}"
    await asyncio.sleep(0.02)
    _looking -= 1
    return seen


@tool(effect="read")
def fail() -> str:
    """Fail."""
    raise ValueError("it broke")


@tool(effect="read")
async def slow(seconds: float) -> str:
    """Take time."""
    started = time.monotonic()
    await asyncio.sleep(seconds)
    return f"{time.monotonic() - started:.1f}"


@tool(effect="read", untrusted=True)
def read_untrusted(text: str) -> str:
    """Give what a stranger wrote."""
    return text


@tool(effect="read", untrusted=True)
def fail_untrusted(text: str) -> str:
    """Fail with what a stranger wrote."""
    raise ValueError(text)


@tool(effect="read", timeout_s=600)
async def gate() -> str:
    """Wait until the test has opened a gate."""
    while not os.path.exists(os.environ["AGENT_TEST_GATE"]):
        await asyncio.sleep(0.01)
    return "open"


@tool(effect="pure")
def flood(count: int) -> str:
    """Give much."""
    return "x" * count


@tool(effect="write_external")
def charge(amount: int) -> str:
    """Charge a card, each time it is called."""
    _log(str(amount))
    return f"charged {amount}"


@tool(effect="write_external")
def charge_keyed(amount: int, idempotency_key: str) -> str:
    """Charge a card, once a key."""
    path = Path(os.environ["AGENT_TEST_LOG"])
    if path.exists() and idempotency_key in path.read_text():
        return f"charged {amount}"
    _log(f"{idempotency_key} {amount}")
    return f"charged {amount}"
