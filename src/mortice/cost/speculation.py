"""Drafted tokens: what they cost and when they pay (Step-3, section 5.2; one formula for MTP and other drafts)."""

import msgspec

from mortice.specs.errors import RequestError


class Speculation(msgspec.Struct, frozen=True, kw_only=True):
    """`drafted` tokens a step are verified beside the certain one; `accepted` is the mean number of tokens a step
    yields, from 1 to drafted + 1."""

    drafted: int = 0
    accepted: float = 1.0

    def __post_init__(self) -> None:
        if self.drafted < 0:
            raise RequestError(f"drafted must be at least 0, got {self.drafted}", param="drafted")
        if not 1 <= self.accepted <= self.drafted + 1:
            raise RequestError(
                f"accepted is the mean tokens a step yields: from 1 to {self.drafted + 1}, got {self.accepted:g}",
                param="accepted",
            )

    @property
    def flop_factor(self) -> float:
        """FLOPs a useful token, over those without drafts: every drafted token is computed."""
        return (self.drafted + 1) / self.accepted

    @property
    def byte_factor(self) -> float:
        """KV bytes a useful token, over those without drafts: one reading serves the step."""
        return 1 / self.accepted


NO_SPECULATION = Speculation()
