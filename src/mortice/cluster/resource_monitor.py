"""What workers say of themselves, made into what the control plane hears: load, free memory, cached blocks, and how fast a
worker is beside what its step times promise.

Counts of requests are the plane's own and exact; what comes from here is as old as a worker's last word (it speaks ten
times a second while busy). Steps are linear in a few sums (specs/worker_times.py), so sums are all that a worker tells.
"""

from dataclasses import dataclass, field

from mortice.cluster.decisions import Decisions
from mortice.cluster.membership import Member
from mortice.sched import events
from mortice.specs.messages import KVEvents, WorkerStats
from mortice.specs.worker_times import WorkerTimes

WINDOW_S = 0.25  # of expected step time, before a ratio is taken
WEIGHT = 0.3  # of a new ratio
WARM_UP_STEPS = 8  # of each life: a cold worker's first steps say nothing of it

STEP_SUMS = (
    "steps_prompt",
    "steps_decode",
    "steps_both",
    "step_prompt_tokens",
    "step_prompt_squares",
    "step_sequences",
    "step_context_tokens",
    "step_seconds",
)


@dataclass(slots=True)
class _Speed:
    """Of one life of a worker."""

    seen: dict[str, float] = field(default_factory=dict)
    expected_s: float = 0.0
    measured_s: float = 0.0
    slowdown: float | None = None


class ResourceMonitor:
    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._speeds: dict[str, _Speed] = {}

    def hear(self, member: Member, word: WorkerStats | KVEvents) -> None:
        """A word of a living worker that has said hello."""
        if isinstance(word, KVEvents):
            self._decisions.hear(events.Cached(member.worker_id, word.stored, word.removed))
            return
        now = self._decisions.now()
        member.stats, member.stats_s = word, now
        if member.hello is None or not self._decisions.has_begun:
            return
        self._decisions.hear(
            events.Reported(
                now,
                member.worker_id,
                word.num_running + word.num_waiting,
                word.num_free_blocks,
                self._slowdown(member, word),
            )
        )

    def forget(self, worker_id: str) -> None:
        self._speeds.pop(worker_id, None)

    def _slowdown(self, member: Member, stats: WorkerStats) -> float | None:
        setup = self._decisions.plane.setup
        times = setup.prefill_times if member.role == "prefill" else setup.decode_times
        sums = {name: stats.counters.get(name, 0.0) for name in STEP_SUMS}
        speed = self._speeds.setdefault(member.worker_id, _Speed())
        before, speed.seen = speed.seen, sums
        steps = sums["steps_prompt"] + sums["steps_decode"] + sums["steps_both"]
        if times is None or not before or steps < WARM_UP_STEPS:
            return None
        new = {name: sums[name] - before[name] for name in STEP_SUMS}
        speed.expected_s += expected_seconds(times, new)
        speed.measured_s += new["step_seconds"]
        if speed.expected_s >= WINDOW_S:
            ratio = speed.measured_s / speed.expected_s
            speed.expected_s = speed.measured_s = 0.0
            speed.slowdown = (
                ratio if speed.slowdown is None else (1 - WEIGHT) * speed.slowdown + WEIGHT * ratio
            )
        return speed.slowdown


def expected_seconds(times: WorkerTimes, sums: dict[str, float]) -> float:
    """Seconds that the steps behind these sums take by the worker's times (`WorkerTimes.mixed_s`, summed)."""
    return (
        times.prefill_base_s * sums["steps_prompt"]
        + times.decode_base_s * sums["steps_decode"]
        + max(times.prefill_base_s, times.decode_base_s) * sums["steps_both"]
        + times.prefill_token_s * sums["step_prompt_tokens"]
        + times.prefill_square_s * sums["step_prompt_squares"]
        + times.decode_sequence_s * sums["step_sequences"]
        + times.decode_context_s * sums["step_context_tokens"]
    )
