"""The step ledger: where each step's time went and what it moved, one JSON line a step.

The planner is fitted on these lines; a reader sees at once what the host adds to the model's own time.
"""

import json
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

from mortice.sched.sequence import StepPlan


class Stage(AbstractContextManager):
    """Adds the time spent inside to one stage of the ledger."""

    def __init__(self, ledger: "Ledger", name: str) -> None:
        self._ledger, self._name, self._start = ledger, name, 0.0

    def __enter__(self) -> "Stage":
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        spent = time.perf_counter() - self._start
        self._ledger.step_s[self._name] = self._ledger.step_s.get(self._name, 0.0) + spent


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step computed, in the terms of `specs.worker_times.WorkerTimes`."""

    prompt_tokens: int = 0
    prompt_squares: int = 0  # sum of (start + count)^2 - start^2 over chunks of prompts
    sequences: int = 0  # that decoded
    context_tokens: int = 0  # of those


def work_of(plan: StepPlan) -> StepWork:
    """A chunk of a prompt is one that computes more than its newest token, or a token of the prompt itself."""
    tokens = squares = sequences = context = 0
    for chunk in plan.chunks:
        end = chunk.start + chunk.count
        if chunk.count - chunk.num_drafts > 1 or chunk.start < chunk.sequence.prompt_len:
            tokens += chunk.count
            squares += end * end - chunk.start * chunk.start
        else:
            sequences += 1
            context += end
    return StepWork(tokens, squares, sequences, context)


class Ledger:
    """Sums host seconds a stage over the life of a worker; writes a line a step if given a file."""

    def __init__(
        self, path: str | None, worker_id: str, weight_bytes: int, kv_token_bytes: int, flops_per_token: int
    ) -> None:
        self.worker_id = worker_id
        self.weight_bytes, self.kv_token_bytes, self.flops_per_token = (
            weight_bytes,
            kv_token_bytes,
            flops_per_token,
        )
        self.step_s: dict[str, float] = {}
        self.total_s: dict[str, float] = {}
        self.num_steps = 0
        self.flops = self.read_bytes = self.write_bytes = 0  # of all steps
        # Sums over all steps, by the names under which the worker tells them; enough to compare with `WorkerTimes`.
        self.sums = dict.fromkeys(
            (
                "steps_prompt",
                "steps_decode",
                "steps_both",
                "step_prompt_tokens",
                "step_prompt_squares",
                "step_sequences",
                "step_context_tokens",
                "step_seconds",
            ),
            0.0,
        )
        self.last: tuple[StepWork, float] = (
            StepWork(),
            0.0,
        )  # of the newest step: what it did, and its seconds
        self._file: TextIO | None = None
        if path is not None:
            self._file = Path(f"{path}.{worker_id}").open("a", buffering=1)  # noqa: SIM115 - closed by close()

    def stage(self, name: str) -> Stage:
        return Stage(self, name)

    def end_step(
        self, *, num_seqs: int, num_tokens: int, context_tokens: int, num_outputs: int, work: StepWork
    ) -> None:
        """`context_tokens`: tokens of KV that attention read, summed over sequences."""
        self.num_steps += 1
        self._sum_up(work)
        kv_read_bytes, kv_write_bytes = context_tokens * self.kv_token_bytes, num_tokens * self.kv_token_bytes
        flops = num_tokens * self.flops_per_token
        self.flops += flops
        self.read_bytes += self.weight_bytes + kv_read_bytes
        self.write_bytes += kv_write_bytes
        for name, spent in self.step_s.items():
            self.total_s[name] = self.total_s.get(name, 0.0) + spent
        if self._file is not None:
            line = {
                "t_s": round(time.time(), 6),
                "worker": self.worker_id,
                "step": self.num_steps,
                "num_seqs": num_seqs,
                "num_tokens": num_tokens,
                "num_outputs": num_outputs,
                "weight_bytes": self.weight_bytes,
                "kv_read_bytes": kv_read_bytes,
                "kv_write_bytes": kv_write_bytes,
                "flops": flops,
                "prompt_tokens": work.prompt_tokens,
                "prompt_squares": work.prompt_squares,
                "sequences": work.sequences,
                "context_tokens": work.context_tokens,
                "stage_s": {name: round(spent, 7) for name, spent in self.step_s.items()},
            }
            self._file.write(json.dumps(line) + "\n")
        self.step_s = {}

    def _sum_up(self, work: StepWork) -> None:
        seconds, sums = sum(self.step_s.values()), self.sums
        self.last = (work, seconds)
        both = bool(work.prompt_tokens and work.sequences)
        sums["steps_both" if both else "steps_prompt" if work.prompt_tokens else "steps_decode"] += 1
        sums["step_prompt_tokens"] += work.prompt_tokens
        sums["step_prompt_squares"] += work.prompt_squares
        sums["step_sequences"] += work.sequences
        sums["step_context_tokens"] += work.context_tokens
        sums["step_seconds"] += seconds

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
