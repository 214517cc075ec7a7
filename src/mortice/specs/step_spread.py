"""How far steps fall from the time that their counts say: a distribution of factors, and for how long one lasts.

On a machine of one's own there is none to speak of. Where others work too, steps of one size differ by a factor of three,
and slow ones come together: TPOT is the mean over an answer's steps, whose tail steps drawn one by one would average away.
Slowness lasts for a time and not for a number of steps: a long step averages over several stretches of it, short ones share
one.
"""

import math

import msgspec

from mortice.specs.errors import RequestError


class StepSpread(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`factors`: equally likely, of a step's time over its expected one. `run_s`: seconds of work, as expected, that share
    one; 0: each step has its own."""

    factors: tuple[float, ...]
    run_s: float = 0.0

    def check(self, where: str) -> None:
        """Raise RequestError naming the field of `where` that makes no sense."""
        if not self.factors or not all(math.isfinite(f) and f > 0 for f in self.factors):
            raise RequestError(
                f"{where}.factors must be finite and above 0, at least one", param=f"{where}.factors"
            )
        if not (math.isfinite(self.run_s) and self.run_s >= 0):
            raise RequestError(
                f"{where}.run_s must be finite and not negative, not {self.run_s:g}", param=f"{where}.run_s"
            )
