"""The control loop: an observation in, a decision out. What it remembers it was told, so a recorded run can be replayed.

Guards that hold for every policy: figures that are no numbers, negative or stale change nothing; a pool shrinks only
after `patience` decisions that agree, and an interval without traffic says nothing until `idle_s` of them; a division
changes only for a gain of `hysteresis` and not twice within `dwell_s`; the budget holds at every instant.
"""

import math
from collections.abc import Sequence

import msgspec

from mortice.sched.actions import Action, Bounds, Flip, Standing, reshape
from mortice.sched.fleet import ROLES, Role
from mortice.sched.forecast import Constant, ForecastName, Trusted, forecaster
from mortice.sched.lengths import Lengths
from mortice.sched.observation import Demand, Observation, Target
from mortice.sched.policy import Mortice, Policy, Scope, Static

LATE = 0.9  # share within the SLO below which requests are late


class Pace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When decisions are taken and how fast they may turn round. Seconds."""

    period_s: float = 10.0
    start_s: float = 45.0  # until a started worker serves
    patience: int = 6  # decisions that must agree before a pool shrinks
    dwell_s: float = 20.0  # between two changes of the division, unless requests are late
    hysteresis: float = 0.15
    idle_s: float = 50.0
    forecast: ForecastName = "quantile"


class Decision(msgspec.Struct, frozen=True, kw_only=True, tag="reshape"):
    """One turn of the loop: what was seen, expected and wanted, what is done, and what was not chosen."""

    at_s: float
    seen: Observation
    demand: Demand | None
    target: Target
    other: Target  # best target not taken
    actions: list[Action]
    reason: str
    distrusted: list[str] = []


class Controller:
    def __init__(self, policy: Policy, bounds: Bounds, pace: Pace) -> None:
        self.policy, self.bounds, self.pace = policy, bounds, pace
        self._rate = Trusted(forecaster(pace.forecast))
        self._lengths = Lengths()
        self._quiet_s = 0.0
        self._smaller = 0  # decisions in a row that wanted fewer workers
        self._changed_at_s = -math.inf
        self.num_flips = 0

    def decide(self, seen: Observation, standing: Sequence[Standing], starting: dict[Role, int]) -> Decision:
        """Actions for the workers that stand; `starting` counts those that were ordered and are not ready."""
        now = self._now(standing, starting)
        fault = seen.fault()
        if fault:
            return self._hold(seen, now, None, f"metrics not trusted: {fault}")
        self._remember(seen)
        if isinstance(self.policy, Static):
            return self._hold(seen, now, None, "static")
        demand, distrusted = self._expect(seen)
        if demand.prompt_mean <= 0:
            return self._hold(seen, now, demand, "nothing seen yet")
        if seen.num_arrived == 0 and self._quiet_s < self.pace.idle_s and seen.num_prefilling == 0:
            return self._hold(seen, now, demand, "no traffic, not for long")
        scope = Scope(
            sum(now.count(role) for role in ROLES),
            self._most(now),
            self.bounds.can_scale,
            margin=self.pace.hysteresis,
            is_late=self._is_late,
        )
        wanted, other = self.policy.target(demand, seen, now, scope)
        wanted = self.bounds.fit(wanted)
        wanted, why = self._temper(wanted, now, demand, seen, sure=not distrusted)
        actions = reshape(standing, starting, wanted, self.bounds)
        if actions:
            self._changed_at_s = seen.at_s
            self.num_flips += sum(isinstance(action, Flip) for action in actions)
        return Decision(
            at_s=seen.at_s,
            seen=seen,
            demand=demand,
            target=wanted,
            other=other,
            actions=actions,
            reason=why,
            distrusted=distrusted,
        )

    def break_forecast(self, answer: float) -> None:
        """From now on the forecaster answers this, whatever it is."""
        self._rate.inner = Constant(answer)

    # -- inside -------------------------------------------------------------------------------------------------

    def _temper(
        self, wanted: Target, now: Target, demand: Demand, seen: Observation, *, sure: bool
    ) -> tuple[Target, str]:
        """What of the wish is gone for now: never a hasty shrink, never a turn for too little."""
        if wanted == now or all(wanted.count(r) == now.count(r) for r in ROLES):
            self._smaller = 0
            return wanted, wanted.reason
        size, had = self.bounds.of(wanted), self.bounds.of(now)
        if size < had:
            if not sure:
                return now, "fewer workers would do, but the forecast is not trusted"
            self._smaller += 1
            if self._smaller < self.pace.patience:
                return now, f"fewer workers would do, {self._smaller} of {self.pace.patience} times"
            self._smaller = 0
            return wanted, f"{wanted.reason}; for {self.pace.patience} decisions"
        self._smaller = 0
        if size > had:
            return wanted, wanted.reason
        if seen.at_s - self._changed_at_s < self.pace.dwell_s and not self._is_late:
            return now, "the division was changed a moment ago"
        if isinstance(self.policy, Mortice):
            carried = self.policy.score(now, demand)
            if carried >= demand.rate and not self._is_late:
                return now, f"{now.name} carries what is expected"
            gain = self.policy.score(wanted, demand) / max(1e-9, carried)
            # Where requests miss, the division that stands is shown not to carry: less is worth a change.
            if gain < 1 + self.pace.hysteresis * (1 / 3 if self._is_late else 1.0):
                return now, f"{wanted.name} would carry {gain:.2f} times as much: not worth a change"
        return wanted, wanted.reason

    @property
    def _is_late(self) -> bool:
        return self._lengths.share_met < LATE

    def _remember(self, seen: Observation) -> None:
        self._quiet_s = 0.0 if seen.num_arrived else self._quiet_s + seen.interval_s
        self._rate.add(seen.rate)
        self._lengths.add(seen)

    def _expect(self, seen: Observation) -> tuple[Demand, list[str]]:
        ahead = self.pace.start_s if self.bounds.can_scale else 0.0
        steps = max(1, math.ceil((self.pace.period_s + ahead) / max(1e-9, seen.interval_s)))
        rate, why = self._rate.predict(steps)
        return self._lengths.demand(rate), [f"rate: {why}"] if why else []

    def _now(self, standing: Sequence[Standing], starting: dict[Role, int]) -> Target:
        counts = {
            role: sum(w.role == role and not w.is_draining for w in standing) + starting.get(role, 0)
            for role in ROLES
        }
        return Target(counts["prefill"], counts["decode"], counts["mixed"], "as it is")

    def _most(self, now: Target) -> int:
        if self.bounds.max_gpus is None:
            return max(1, sum(now.count(role) for role in ROLES)) if not self.bounds.can_scale else 1 << 14
        return max(1, self.bounds.max_gpus // max(self.bounds.prefill_gpus, self.bounds.decode_gpus))

    def _hold(self, seen: Observation, now: Target, demand: Demand | None, reason: str) -> Decision:
        return Decision(
            at_s=seen.at_s, seen=seen, demand=demand, target=now, other=now, actions=[], reason=reason
        )
