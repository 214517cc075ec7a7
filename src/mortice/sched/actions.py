"""What the control loop may order, and the cheapest way from the workers there are to those that are wanted.

In order of cost: take a drain back, flip a role (milliseconds, the weights stay), start a worker (tens of seconds), and last
stop one (it drains first). Never more accelerators than the budget at any instant, workers that start or drain counted.
"""

from collections.abc import Sequence

import msgspec

from mortice.sched.fleet import ROLES, Role
from mortice.sched.observation import Target


class Flip(msgspec.Struct, frozen=True, tag="flip"):
    """This worker takes new requests of `role` from now on; what it has it finishes (or hands over)."""

    worker_id: str
    role: Role


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Start one worker that will wear `role`. It joins when it is ready."""

    role: Role


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Give this worker no more; stop it when all it has is over."""

    worker_id: str


class Undrain(msgspec.Struct, frozen=True, tag="undrain"):
    """A worker that was to be stopped is wanted after all, in this role."""

    worker_id: str
    role: Role


Action = Flip | Start | Stop | Undrain


class Standing(msgspec.Struct, frozen=True):
    """A worker as far as reshaping minds it. `busy`: how much would have to be finished or moved."""

    worker_id: str
    role: Role
    busy: float
    is_draining: bool = False


class Bounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What no target may leave. Budgets count accelerators; None: no bound but the workers there are at first."""

    min_prefill: int = 0
    min_decode: int = 1  # decode and mixed workers together
    max_gpus: int | None = None
    prefill_gpus: int = 1  # of one worker
    decode_gpus: int = 1
    max_flips: int = 8  # in one decision
    can_scale: bool = True  # workers may be started and stopped; else roles only change

    def gpus(self, role: Role) -> int:
        return self.prefill_gpus if role == "prefill" else self.decode_gpus

    def of(self, target: Target) -> int:
        return sum(target.count(role) * self.gpus(role) for role in ROLES)

    @property
    def can_flip(self) -> bool:
        """A worker keeps its accelerators when it changes its role."""
        return self.prefill_gpus == self.decode_gpus

    def fit(self, target: Target, budget: int | None = None) -> Target:
        """The target within the bounds: at least the minimums, and shrunk in proportion to the budget. Where the minimums
        alone exceed the budget they are kept: it ends, unlike a loop that shrinks until the sum fits."""
        limit = budget if budget is not None else self.max_gpus
        prefill, decode, mixed = (
            max(target.prefill, self.min_prefill),
            max(0, target.decode),
            max(0, target.mixed),
        )
        decode += max(0, self.min_decode - decode - mixed)
        if limit is not None:
            used = prefill * self.prefill_gpus + (decode + mixed) * self.decode_gpus
            if used > limit:
                share = limit / used
                prefill = max(self.min_prefill, round(prefill * share), 1 if prefill else 0)
                mixed = int(mixed * share)
                decode = max(0, (limit - prefill * self.prefill_gpus) // self.decode_gpus - mixed)
                decode = max(decode, self.min_decode - mixed, 0)
                while (
                    prefill > max(self.min_prefill, 0)
                    and prefill * self.prefill_gpus + (decode + mixed) * self.decode_gpus > limit
                ):
                    prefill -= 1
        return msgspec.structs.replace(target, prefill=prefill, decode=decode, mixed=mixed)


def reshape(
    standing: Sequence[Standing], starting: dict[Role, int], target: Target, bounds: Bounds
) -> list[Action]:
    """Actions from what stands to the target, cheapest first. Deterministic: ties go by worker id."""
    want = {role: target.count(role) for role in ROLES}
    have = {
        role: sum(w.role == role and not w.is_draining for w in standing) + starting.get(role, 0)
        for role in ROLES
    }
    actions: list[Action] = []
    lacking = {role: want[role] - have[role] for role in ROLES}
    # 1. drains taken back
    for worker in sorted((w for w in standing if w.is_draining), key=lambda w: (w.busy, w.worker_id)):
        role = worker.role if lacking[worker.role] > 0 else _most(lacking)
        if lacking[role] > 0 and (role == worker.role or bounds.can_flip):
            actions.append(Undrain(worker.worker_id, role))
            lacking[role] -= 1
    # 2. flips, least busy first
    flips = 0
    spare = {
        role: sorted(
            (w for w in standing if w.role == role and not w.is_draining), key=lambda w: (w.busy, w.worker_id)
        )
        for role in ROLES
    }
    while bounds.can_flip and flips < bounds.max_flips:
        to = _most(lacking)
        from_ = min(ROLES, key=lambda role: lacking[role])
        if lacking[to] <= 0 or lacking[from_] >= 0 or not spare[from_]:
            break
        actions.append(Flip(spare[from_].pop(0).worker_id, to))
        lacking[to] -= 1
        lacking[from_] += 1
        flips += 1
    if not bounds.can_scale:
        return actions
    # 3. starts, within the budget counted over everything that still stands
    used = sum(bounds.gpus(w.role) for w in standing) + sum(bounds.gpus(r) * n for r, n in starting.items())
    for role in ROLES:
        for _ in range(max(0, lacking[role])):
            if bounds.max_gpus is not None and used + bounds.gpus(role) > bounds.max_gpus:
                break
            actions.append(Start(role))
            used += bounds.gpus(role)
    return actions + _stops(standing, spare, lacking, actions, bounds)


def _stops(
    standing: Sequence[Standing],
    spare: dict[Role, list[Standing]],
    lacking: dict[Role, int],
    actions: list[Action],
    bounds: Bounds,
) -> list[Action]:
    """Of workers that stand, and never of the last that decode while others only start."""
    stops: list[Action] = []
    flipped = {action.worker_id: action.role for action in actions if isinstance(action, Flip | Undrain)}
    serving = sum(
        flipped.get(w.worker_id, w.role) != "prefill"
        for w in standing
        if not w.is_draining or w.worker_id in flipped
    )
    for role in ROLES:
        for worker in spare[role][: max(0, -lacking[role])]:
            if role != "prefill":
                if serving <= max(1, bounds.min_decode):
                    break
                serving -= 1
            stops.append(Stop(worker.worker_id))
    return stops


def _most(lacking: dict[Role, int]) -> Role:
    return max(ROLES, key=lambda role: lacking[role])
