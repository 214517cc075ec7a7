"""Who belongs to the cluster: places, the lives that fill them, heartbeats, and the fence around what is over.

A place outlives its workers. Each life has an id of its own (`worker-0.3`), and only the words of the life that is counted
now are heard: a worker that died, stalled or was cut off is fenced when the cluster gives it up, and whatever it still says,
however late, changes nothing. Every word is a heartbeat; an idle worker speaks twice a second.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mortice.cluster.api import WorkerInfo
from mortice.cluster.launcher import Body, Launcher
from mortice.sched.fleet import Role
from mortice.sched.recovery import RestartPolicy
from mortice.specs.messages import Hello, WorkerStats


@dataclass(slots=True, eq=False)
class Member:
    """One place and the worker that fills it now."""

    place: str  # worker-0, worker-1, ...
    role: Role  # the coat; the body stays
    launcher: Launcher
    life: int = 0
    body: Body | None = None
    hello: Hello | None = None  # None until the worker can serve
    is_fenced: bool = False  # this life is over for the cluster: what it says is not heard
    is_silenced: bool = False  # given up because it said nothing any more
    is_draining: bool = False  # gets nothing more, and ends when what it has is over
    is_leaving: bool = False  # was told to end
    was_ready: bool = False  # in any of its lives
    stats: WorkerStats | None = None
    stats_s: float = 0.0  # when they came, by the decisions' clock
    failure: str | None = None  # why the place was given up
    failure_status: int = 500  # HTTP status the failure would be: below 500 the user can mend it
    started_s: float = 0.0
    heard_s: float = 0.0
    restarts: RestartPolicy = field(default_factory=RestartPolicy)

    @property
    def worker_id(self) -> str:
        return f"{self.place}.{self.life}"

    @property
    def is_ready(self) -> bool:
        return self.hello is not None and self.state not in ("dead", "asleep", "draining")

    @property
    def is_empty(self) -> bool:
        """By its own last word nothing runs, waits, moves or is lent there."""
        s = self.stats
        return s is not None and not (s.num_running or s.num_waiting or s.num_pulling or s.num_leased_blocks)

    @property
    def state(self) -> str:
        if self.body is None or self.body.returncode is not None:
            return "dead" if self.failure else "starting"
        if self.hello is None:
            return "starting"
        if self.is_draining:
            return "draining"
        return self.stats.state if self.stats else "running"

    def info(self) -> WorkerInfo:
        pid = self.hello.pid if self.hello else self.body.pid if self.body else 0
        return WorkerInfo(
            id=self.worker_id,
            role=self.role,
            pid=pid,
            state=self.state,
            host=self.launcher.host,
            stats=self.stats,
        )


class Membership:
    """`silence_s`: a worker, ready or starting on a connection that broke, that says nothing for so long is given up."""

    def __init__(self, silence_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.silence_s = silence_s
        self._clock = clock
        self._members: dict[str, Member] = {}
        self._num_places = 0

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def add(self, role: Role, launcher: Launcher) -> Member:
        """A new place. Names are not used twice."""
        member = Member(f"worker-{self._num_places}", role, launcher)
        self._num_places += 1
        self._members[member.place] = member
        return member

    def remove(self, member: Member) -> None:
        self._members.pop(member.place, None)

    def living(self, worker_id: str) -> Member | None:
        """The member whose present life this is; None if that life is over or never was."""
        member = self._members.get(worker_id.rpartition(".")[0])
        if member is None or member.worker_id != worker_id or member.is_fenced:
            return None
        return member

    def find(self, name: str) -> Member | None:
        """By id of its present life, or by place."""
        member = self._members.get(name) or self._members.get(name.rpartition(".")[0])
        return member if member is not None and name in (member.place, member.worker_id) else None

    def begin_life(self, member: Member) -> None:
        member.life += 1
        member.hello = member.stats = None
        member.is_fenced = member.is_silenced = False
        member.started_s = member.heard_s = self._clock()

    def hear(self, member: Member) -> None:
        member.heard_s = self._clock()

    def lived_s(self, member: Member) -> float:
        return self._clock() - member.started_s

    def silent(self) -> list[Member]:
        """Those that have been ready and silent for too long, and are not fenced yet."""
        now = self._clock()
        return [
            m for m in self if m.hello is not None and not m.is_silenced and now - m.heard_s > self.silence_s
        ]

    def unborn(self, limit_s: float) -> list[Member]:
        """Those that were started so long ago and are not ready."""
        now = self._clock()
        return [
            m
            for m in self
            if m.hello is None
            and m.body is not None
            and m.body.returncode is None
            and not m.is_fenced
            and not m.is_silenced
            and now - m.started_s > limit_s
        ]
