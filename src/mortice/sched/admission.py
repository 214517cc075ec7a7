"""Early rejection: a request that would be late is refused before it costs anything (Mooncake, FAST'25, section 6)."""

import msgspec

from mortice.sched.answers import Route
from mortice.specs.slo import SLO


class Admit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to refuse. `late`: the predicted TTFT over the target from which a request is refused; None: never for that.
    `max_in_flight`: requests that are admitted and not ended; None: unbounded."""

    late: float | None = None
    max_in_flight: int | None = None

    def refusal(self, route: Route, slo: SLO | None, num_in_flight: int, *, in_seconds: bool) -> str:
        """Why the request is refused; "" if it is admitted. Costs that are not in seconds refuse nothing."""
        if self.max_in_flight is not None and num_in_flight >= self.max_in_flight:
            return f"{num_in_flight} requests are in flight"
        if self.late is None or not in_seconds or slo is None or slo.ttft_ms is None:
            return ""
        if route.cost > self.late * slo.ttft_ms / 1e3:
            return f"its first token is expected after {route.cost:.2f} s"
        return ""
