"""Latency targets, and what it means to meet them."""

import math

import msgspec

from mortice.specs.errors import RequestError


class SLO(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on one request, in milliseconds, inclusive; None: no limit. `target` is the share that must
    meet all."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    target: float = 0.9

    def check(self) -> None:
        """Raise RequestError naming the first field that makes no sense."""
        for name, limit in self.limits().items():
            if not (math.isfinite(limit) and limit > 0):
                raise RequestError(f"{name} must be above 0 milliseconds, not {limit:g}", param=name)
        if not 0 < self.target <= 1:
            raise RequestError(f"target is a share above 0 and up to 1, not {self.target:g}", param="target")

    def limits(self) -> dict[str, float]:
        """The limits that are set, by metric name: ttft_ms, tpot_ms, e2e_ms."""
        every = {"ttft_ms": self.ttft_ms, "tpot_ms": self.tpot_ms, "e2e_ms": self.e2e_ms}
        return {name: limit for name, limit in every.items() if limit is not None}

    def missed(self, *, ttft_ms: float, tpot_ms: float | None, e2e_ms: float) -> list[str]:
        """Names of the limits that a finished request broke; TPOT of a single token is undefined and breaks
        none."""
        seen = {"ttft_ms": ttft_ms, "tpot_ms": tpot_ms, "e2e_ms": e2e_ms}
        return [
            name
            for name, limit in self.limits().items()
            if (value := seen[name]) is not None and value > limit
        ]
