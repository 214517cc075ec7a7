"""The epochs of agents and workflows, whose journal is a database: see `mortice.sandbox.epoch` for what an epoch is.

The manifest of an epoch is sealed at the end of each turn, while the model thinks on the next, and stands in three places
that vouch for one another: in the journal (with that next thought), in the run's audit chain, and, through the snapshot's
own manifest and the sandbox's chain, with the machine. Whoever resumes a run proves that they still match.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from mortice.agent.durable import Json, StepRecord
from mortice.agent.logview import LogView
from mortice.sandbox import MachineState

OF_THE_STORE = ("DBOS.", "mortice.run")  # how its own steps in a journal begin


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """All that came before `turn` (of a workflow: before that use of a sandbox). `journal` is the digest of the
    steps; `chain`, `seq` and `head` name the audit record that states the rest of this manifest.
    """

    turn: int
    journal: str
    machine: MachineState | None
    chain: str
    seq: int
    head: str
    steps: tuple[str, ...] | None = (
        None  # of a workflow, whose steps may run at once: those since the epoch before
    )


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last epoch and what came after it. `altered`: parts that do not match; `absent`: parts that are not here, so
    that nothing can be said of them.
    """

    turn: int | None  # None: no epoch was sealed yet
    altered: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    unit: str = "turn"
    agents: tuple[str, ...] = ()  # sub-agents whose proofs are part of this one

    def said(self) -> str:
        """In one line."""
        if self.turn is None:
            return "no epoch was sealed yet"
        if self.altered:
            return (
                f"the run does not match its epoch before {self.unit} {self.turn}: {'; '.join(self.altered)}"
            )
        lacks = f" ({'; '.join(self.absent)})" if self.absent else ""
        too = f", those of {len(self.agents)} sub-agents too" if self.agents else ""
        return f"epoch before {self.unit} {self.turn}: journal, sandbox and audit log match{too}{lacks}"

    def with_agent(self, run: str, proof: "Proof") -> "Proof":
        """This proof and that of a sub-agent, or of one below it."""
        return msgspec.structs.replace(
            self,
            altered=(*self.altered, *(f"sub-agent {run}: {text}" for text in proof.altered)),
            absent=(*self.absent, *(f"sub-agent {run}: {text}" for text in proof.absent)),
            agents=(*self.agents, run, *proof.agents),
        )


class FlowDigest:
    """Runs along with a workflow, whose steps may run at once: each seal says which steps it covers."""

    def __init__(self) -> None:
        self._last = ""
        self._num = 0
        self._since: dict[str, str] = {}

    def add(self, name: str, output: Json) -> None:
        """A step that has ended. One with an epoch in it is known to come after all that this epoch covers."""
        sealed = output.get("sealed") if isinstance(output, dict) else None
        if sealed is not None:
            self._last, self._num = sealed["journal"], sealed["turn"] + 1
            for covered in sealed["steps"]:
                self._since.pop(covered, None)
        self._since[name] = step_digest(name, output)

    def seal(self) -> tuple[int, str, tuple[str, ...]]:
        """(number, digest, names) of an epoch here. Nothing changes before the step that has it has ended."""
        return self._num, _sha256([self._last, sorted(self._since.items())]), tuple(sorted(self._since))


class JournalDigest:
    """Runs along with the steps of a run. Steps between two seals may come in any order."""

    def __init__(self) -> None:
        self._sealed = ""
        self._since: dict[str, str] = {}

    def add(self, name: str, output: Json) -> None:
        self._since[name] = step_digest(name, output)

    def seal(self) -> str:
        """The digest of all steps so far."""
        if self._since:
            self._sealed = _sha256([self._sealed, sorted(self._since.items())])
            self._since = {}
        return self._sealed


def step_digest(name: str, output: Json) -> str:
    return _sha256([name, output])


def prove(
    run: str,
    steps: Sequence[StepRecord],
    log: LogView,
    *,
    machine_of: Callable[[str], MachineState | None],
    boxes_log: LogView | None,
    flow: bool = False,
) -> Proof:
    """Compare the journal's steps (`flow`: a workflow's) with the epochs in it, the audit log, the snapshots, and the
    sandboxes' log. `machine_of` gives a snapshot's state as it is now, None if it is gone; it may raise if it was altered.
    """
    own = [step for step in steps if not step.name.startswith(OF_THE_STORE)]
    altered, epoch, tail = (_flow_journal if flow else _journal)(own)
    if epoch is None:
        return Proof(turn=None, altered=tuple(altered))
    absent: list[str] = []
    if not log.has(epoch.chain):
        absent.append("the audit log is not on this machine")
    else:
        altered += log.broken(epoch.chain, epoch.seq, epoch.head)
        logged = log.steps(run, since=epoch.chain)
        for step in tail:
            known = logged.get(step.name)
            if known is None:
                absent.append(f"the audit log ends before the step {step.name!r}")
            elif step.error is None and step_digest(step.name, step.output) not in known:
                altered.append(f"the audit log has another outcome of the step {step.name!r}")
    if epoch.machine is not None:
        _machine(epoch.machine, machine_of, boxes_log, altered, absent)
    unit = "use of a sandbox" if flow else "turn"
    return Proof(turn=epoch.turn, altered=tuple(altered), absent=tuple(absent), unit=unit)


def _journal(steps: Iterable[StepRecord]) -> tuple[list[str], Epoch | None, list[StepRecord]]:
    """What is wrong with the journal by itself, its last epoch, and the steps that no epoch covers."""
    altered: list[str] = []
    digest, last, tail = JournalDigest(), None, list[StepRecord]()
    for step in steps:
        output = step.output if isinstance(step.output, dict) else {}
        if step.name.startswith("think ") and output.get("epoch"):
            last, tail = msgspec.convert(output["epoch"], Epoch), []
            if digest.seal() != last.journal:
                altered.append(f"the journal is not what it was before turn {last.turn}")
        if step.error is None:
            digest.add(step.name, step.output)
        tail.append(step)
    return altered, last, tail


def _flow_journal(steps: Iterable[StepRecord]) -> tuple[list[str], Epoch | None, list[StepRecord]]:
    """As `_journal`; epochs come in the order of their numbers, which need not be that of the steps they are in."""
    altered: list[str] = []
    by_name = {step.name: step for step in steps}
    outputs = (step.output for step in by_name.values() if isinstance(step.output, dict))
    epochs = sorted(
        (msgspec.convert(o["sealed"], Epoch) for o in outputs if o.get("sealed")), key=lambda e: e.turn
    )
    before, covered = "", set[str]()
    for epoch in epochs:
        names = epoch.steps or ()
        items = sorted((n, step_digest(n, by_name[n].output)) for n in names if n in by_name)
        if len(items) < len(names) or _sha256([before, [list(item) for item in items]]) != epoch.journal:
            altered.append(f"the journal is not what it was before use {epoch.turn} of a sandbox")
        before = epoch.journal
        covered |= set(names)
    tail = [step for name, step in by_name.items() if name not in covered]
    return altered, epochs[-1] if epochs else None, tail


def _machine(
    was: MachineState,
    machine_of: Callable[[str], MachineState | None],
    boxes_log: LogView | None,
    altered: list[str],
    absent: list[str],
) -> None:
    try:
        now = machine_of(was.snapshot)
    except Exception as error:
        altered.append(str(error))
        return
    if now is None:
        absent.append(f"snapshot {was.snapshot} is gone")
    elif now != was:
        altered.append(f"snapshot {was.snapshot} is another one now")
    if boxes_log is None or not boxes_log.has(was.chain):
        absent.append("the sandbox's audit log is not on this machine")
        return
    altered += boxes_log.broken(was.chain, was.seq, was.head)


def _sha256(value: Any) -> str:
    """Of canonical JSON; ASCII, since models may send half a surrogate pair."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
