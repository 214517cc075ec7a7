"""One place in the cluster and the worker that fills it now."""

import asyncio
import time
from dataclasses import dataclass, field

from mortice.cluster.api import WorkerInfo
from mortice.sched.fleet import Role
from mortice.sched.recovery import RestartPolicy
from mortice.sched.router import Load
from mortice.specs.messages import Hello, WorkerStats


@dataclass(slots=True, eq=False)
class Member:
    """A place outlives its workers: each life has an id of its own, so words of the dead are told from the living's."""

    place: str  # prefill-0, decode-1, ...
    role: Role
    life: int = 0
    process: asyncio.subprocess.Process | None = None
    hello: Hello | None = None  # None until the worker can serve
    is_buried: bool = False  # its death was dealt with: last words that arrive only now are ignored
    is_silenced: bool = False  # killed by us, because it said nothing any more
    stats: WorkerStats | None = None
    failure: str | None = None  # why the place was given up
    failure_status: int = 500  # HTTP status the failure would be: below 500 the user can mend it
    started_s: float = 0.0
    ready_s: float = 0.0
    heard_s: float = 0.0
    restarts: RestartPolicy = field(default_factory=RestartPolicy)

    @property
    def worker_id(self) -> str:
        return f"{self.place}.{self.life}"

    @property
    def is_ready(self) -> bool:
        return self.hello is not None and self.state not in ("dead", "asleep", "draining")

    @property
    def state(self) -> str:
        if self.process is None or self.process.returncode is not None:
            return "dead" if self.failure else "starting"
        if self.hello is None:
            return "starting"
        return self.stats.state if self.stats else "running"

    def hear(self) -> None:
        self.heard_s = time.monotonic()

    def info(self) -> WorkerInfo:
        pid = self.process.pid if self.process else 0
        return WorkerInfo(id=self.worker_id, role=self.role, pid=pid, state=self.state, stats=self.stats)

    def load(self, num_assigned: int, assigned_tokens: int) -> Load:
        assert self.hello is not None
        num_blocks = self.hello.pool.num_blocks
        free = self.stats.num_free_blocks if self.stats else num_blocks
        return Load(self.worker_id, self.role, num_assigned, assigned_tokens, free, num_blocks)
