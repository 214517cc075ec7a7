"""How far steps fall from the time that their counts say: a distribution of factors, and for how many steps one lasts.

On a machine of one's own there is none to speak of. Where others work too, steps of one size differ by a factor of three,
and slow ones come together: TPOT is the mean over an answer's steps, whose tail steps drawn one by one would average away.
"""

import math

import msgspec

from mortice.specs.errors import RequestError


class StepSpread(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`factors`: equally likely, of a step's time over its expected one. `run`: steps in a row that share one."""

    factors: tuple[float, ...]
    run: int = 1

    def check(self, where: str) -> None:
        """Raise RequestError naming the field of `where` that makes no sense."""
        if not self.factors or not all(math.isfinite(f) and f > 0 for f in self.factors):
            raise RequestError(
                f"{where}.factors must be finite and above 0, at least one", param=f"{where}.factors"
            )
        if self.run < 1:
            raise RequestError(f"{where}.run must be at least 1, not {self.run}", param=f"{where}.run")
