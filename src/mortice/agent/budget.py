"""What a run may spend. Pure: amounts in, the name of what is used up out. Every budget is checked before the act.

Seconds are those that steps took by the monotonic clock, so neither a stepped clock nor the hours a run lay dead count.
"""

import msgspec

from mortice.agent.history import Answer, Compaction, Event, Observation, Usage


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """US dollars per million tokens."""

    input: float = 0.0
    output: float = 0.0

    def of(self, usage: Usage) -> float:
        """Of one answer, in US dollars."""
        return (usage.input_tokens * self.input + usage.output_tokens * self.output) / 1e6


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """None: no bound."""

    turns: int = 20
    calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    sandbox_seconds: float | None = None
    usd: float | None = None


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    turns: int = 0
    calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    sandbox_seconds: float = 0.0
    usd: float = 0.0


def spent(events: tuple[Event, ...], price: Price) -> Spent:
    """Sum over a history; a sub-agent's spending is in the observation of its call."""
    turns = calls = tokens = 0
    seconds = sandbox_seconds = usd = 0.0
    for event in events:
        if isinstance(event, Answer | Compaction):
            turns += isinstance(event, Answer)
            tokens += event.usage.input_tokens + event.usage.output_tokens
            seconds += event.seconds
            usd += price.of(event.usage)
        elif isinstance(event, Observation):
            calls += 1
            tokens += event.tokens
            usd += event.usd
            seconds += event.seconds
            sandbox_seconds += event.sandbox_seconds
    return Spent(
        turns=turns,
        calls=calls,
        tokens=tokens,
        seconds=seconds,
        sandbox_seconds=sandbox_seconds,
        usd=usd,
    )


def used_up(budget: Budget, amount: Spent) -> str | None:
    """The first budget with nothing left, as `turns: 20 of 20`; None if the run may go on."""
    for name in Budget.__struct_fields__:
        bound, value = getattr(budget, name), getattr(amount, name)
        if bound is not None and value >= bound:
            return f"{name}: {value:g} of {bound:g}"
    return None


def seconds_left(budget: Budget, amount: Spent, *, cap: float) -> float:
    """How long the next step may take."""
    return cap if budget.seconds is None else max(min(cap, budget.seconds - amount.seconds), 0.001)
