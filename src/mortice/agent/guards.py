"""Loop guards: an agent that goes in circles is told so, then stopped. Pure."""

from typing import Literal

import msgspec

from mortice.agent.history import Answer, Call, Event, Notice, Observation

TELL_AT = 3
STOP_AT = 5
EMPTY_STOP_AT = 2


class Guarded(msgspec.Struct, frozen=True, kw_only=True):
    action: Literal["go", "tell", "stop"] = "go"
    reason: str = ""


def guard(events: tuple[Event, ...], calls: tuple[Call, ...]) -> Guarded:
    """Of the calls an answer asks for: the same call with the same arguments and nothing new seen, three times in a row
    is told, five stopped.
    """
    worst = Guarded()
    for call in calls:
        count = _repeats(events, call) + 1
        if count >= STOP_AT:
            return Guarded(
                action="stop", reason=f"{call.tool} was called {count} times with the same arguments"
            )
        if count >= TELL_AT:
            reason = f"{call.tool} was called {count} times with the same arguments and the same outcome; try another way"
            worst = Guarded(action="tell", reason=reason)
    return worst


def empty_answers(events: tuple[Event, ...]) -> int:
    """How many answers in a row, to the end, had neither text nor calls."""
    count = 0
    for event in reversed(events):
        if isinstance(event, Notice):
            continue
        if isinstance(event, Answer) and not event.text.strip() and not event.calls:
            count += 1
        else:
            break
    return count


def _repeats(events: tuple[Event, ...], call: Call) -> int:
    """How often in a row, to the end, this call was made with one outcome; calls of other tools in between end a row
    only if they saw something that was not seen before.
    """
    key = _key(call)
    asked = {c.id: _key(c) for event in events if isinstance(event, Answer) for c in event.calls}
    count, outcome = 0, None
    fresh: set[tuple[str, str]] = set()
    for event in reversed(events):
        if not isinstance(event, Observation):
            continue
        seen = (asked.get(event.call_id, ""), event.text)
        if seen[0] == key:
            if outcome is not None and event.text != outcome:
                break
            outcome = event.text
            count += 1
            fresh.clear()
        elif seen not in fresh and _new(events, event):
            break
    return count


def _new(events: tuple[Event, ...], observation: Observation) -> bool:
    """Was this text of this tool never observed before?"""
    for event in events:
        if event is observation:
            return True
        if isinstance(event, Observation) and (event.tool, event.text) == (
            observation.tool,
            observation.text,
        ):
            return False
    return True


def _key(call: Call) -> str:
    return call.tool + msgspec.json.encode(call.arguments, order="deterministic").decode()
