"""What the control plane answers to an event. Tagged structs: the other half of a line of a decision log."""

import msgspec

from mortice.sched.controller import Decision


class Route(msgspec.Struct, frozen=True):
    """`prefill` is None where `decode` computes the prompt itself. `cost` is what the choice was made by: work before its
    first token, in seconds or tokens; `other` is the best choice not taken, "" if there was none."""

    prefill: str | None
    decode: str
    reason: str
    cost: float = 0.0
    other: str = ""
    other_cost: float = 0.0
    work: float = 0.0  # its own prefill, in the same unit
    fetch_from: str = ""  # the worker that sends `prefill` the beginning of the prompt before it is computed
    fetch_tokens: int = 0  # of it


class Routed(msgspec.Struct, frozen=True, tag="routed"):
    """Where a request goes. See `Route`."""

    route: Route


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The request is rejected now, and why."""

    reason: str


class Held(msgspec.Struct, frozen=True, tag="held"):
    """No worker can take it: tell the plane again (`Arrived`) when one joined."""


class DecodeAt(msgspec.Struct, frozen=True, tag="decode_at"):
    """Where a prefilled request decodes; None: nowhere now, let it arrive again."""

    worker_id: str | None


Answer = Routed | Refused | Held | DecodeAt | Decision
