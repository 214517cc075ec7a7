"""What a run did to the outside world, written down before and after: rolling back a sandbox does not undo it.

After a restore, a call that already happened gives back its stored result (replay), a different call to the same tool needs
someone's consent, and a branch that wants to act anew says so (fork) and gets keys of its own.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from mortice.specs.errors import RequestError, WrongState


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the ledger: an intent, or what came of it."""

    kind: Literal["intent", "done", "failed", "rewind", "fork"]
    ts: float
    branch: str
    key: str = ""
    step: str = ""
    tool: str = ""
    arguments: Any = None
    epoch: int = -1
    result: Any = None
    credential: str | None = None


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What to do about a call.

    `act`: do it now, with `key` as idempotency key. `replay`: it happened; `result` is what it gave. `failed`: it was
    tried and failed; `result` says how. `unknown`: it began and nobody saw the end: find out, or repeat it with the same
    `key` where the other side honours keys. `differs`: since the restore point this tool was called with other arguments
    (`earlier`): ask.
    """

    key: str
    decision: Literal["act", "replay", "failed", "unknown", "differs"]
    result: Any = None
    earlier: Any = None


class EffectLedger:
    """Append-only, synced line by line; several processes may hold it."""

    def __init__(self, path: Path, *, run: str, branch: str = "main") -> None:
        self._path = path
        self._run = run
        self.branch = branch
        path.parent.mkdir(parents=True, exist_ok=True)

    def begin(
        self,
        step: str,
        tool: str,
        arguments: Any,
        *,
        epoch: int,
        credential: str | None = None,
        approved: bool = False,
    ) -> Effect:
        """Ask before acting. The intent is on the disk when this returns `act`.

        `step` names the place in the run, `epoch` the epoch under way. A one-time `credential` can be used once over all
        branches, whatever was restored; a second use raises WrongState. `approved` lets a differing call through.
        """
        canonical = _canonical(arguments)
        with self._locked() as file:
            entries = self._entries()
            if credential is not None:
                spent = _digest(credential)
                if any(e.credential == spent and (e.step, e.branch) != (step, self.branch) for e in entries):
                    raise WrongState("this one-time credential was used before", param="credential")
            mine = self._visible(entries)
            key = _digest(self._run, self.branch, step)
            known = _find(mine, key)
            if known is None:
                known, differing = self._replayable(mine, tool, canonical)
                if differing is not None and not approved:
                    return Effect(key=key, decision="differs", earlier=differing.arguments)
            elif (known.tool, _canonical(known.arguments)) != (tool, canonical):
                if not approved:
                    return Effect(key=key, decision="differs", earlier=known.arguments)
                key = _digest(key, canonical)
                known = _find(mine, key)
            if known is not None:
                return _outcome(mine, known)
            intent = Entry(
                kind="intent", ts=time.time(), branch=self.branch, key=key, step=step, tool=tool, arguments=arguments,
                epoch=epoch, credential=_digest(credential) if credential is not None else None,
            )  # fmt: skip
            self._append(file, intent)
            return Effect(key=key, decision="act")

    def finish(self, key: str, result: Any, *, failed: bool = False) -> None:
        """Record what came of it, before anyone is told."""
        with self._locked() as file:
            intent = _find(self._entries(), key)
            if intent is None:
                raise RequestError(f"no effect was begun under key {key!r}", param="key")
            self._append(
                file,
                Entry(
                    kind="failed" if failed else "done", ts=time.time(), branch=intent.branch, key=key, step=intent.step,
                    tool=intent.tool, epoch=intent.epoch, result=result,
                ),
            )  # fmt: skip

    def rewind(self, epoch: int) -> None:
        """The run went back to this epoch: what is newer has happened all the same."""
        with self._locked() as file:
            self._append(file, Entry(kind="rewind", ts=time.time(), branch=self.branch, epoch=epoch))

    def fork(self, branch: str) -> "EffectLedger":
        """A branch that may act anew: it sees what happened before, and its keys are its own."""
        with self._locked() as file:
            if any(e.branch == branch for e in self._entries()):
                raise RequestError(f"there is a branch {branch!r}", param="branch")
            self._append(file, Entry(kind="fork", ts=time.time(), branch=branch, step=self.branch))
        return EffectLedger(self._path, run=self._run, branch=branch)

    def since(self, epoch: int) -> list[Entry]:
        """Facts to tell a model after a restore to `epoch`: finished and unfinished effects that are newer."""
        entries = self._entries()
        ended = {e.key for e in entries if e.kind in ("done", "failed")}
        return [
            e for e in entries
            if e.branch == self.branch and e.epoch > epoch
            and (e.kind in ("done", "failed") or (e.kind == "intent" and e.key not in ended))
        ]  # fmt: skip

    @property
    def num_entries(self) -> int:
        return len(self._entries())

    def _visible(self, entries: list[Entry]) -> list[Entry]:
        return [e for e in entries if e.branch == self.branch]

    def _replayable(self, mine: list[Entry], tool: str, canonical: str) -> tuple[Entry | None, Entry | None]:
        """Of effects newer than the last restore point and not replayed since: one that is the same call, or else one that
        differs. A model words its calls anew after a restore, so the step alone does not find them."""
        at = max((i for i, e in enumerate(mine) if e.kind == "rewind"), default=None)
        if at is None:
            return None, None
        point = mine[at].epoch
        before = [e for e in mine[:at] if e.kind == "intent" and e.tool == tool and e.epoch > point]
        for entry in before:
            if _canonical(entry.arguments) == canonical:
                return entry, None
        return None, before[-1] if before else None

    @contextmanager
    def _locked(self) -> Iterator[int]:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            data = self._path.read_bytes()
            if data and not data.endswith(b"\n"):  # a line torn by power loss: its effect never began
                os.ftruncate(fd, data.rfind(b"\n") + 1)
            yield fd
        finally:
            os.close(fd)

    def _entries(self) -> list[Entry]:
        if not self._path.exists():
            return []
        entries = []
        for number, line in enumerate(self._path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                entries.append(msgspec.json.decode(line, type=Entry))
            except msgspec.DecodeError as error:  # to act without knowing what was done might do it twice
                raise WrongState(
                    f"line {number} of {self._path} is damaged or of a later version of this software: {error}"
                ) from None
        return entries

    def _append(self, fd: int, entry: Entry) -> None:
        os.write(fd, msgspec.json.encode(entry) + b"\n")
        os.fsync(fd)


def _find(entries: list[Entry], key: str) -> Entry | None:
    return next((e for e in entries if e.kind == "intent" and e.key == key), None)


def _outcome(entries: list[Entry], intent: Entry) -> Effect:
    for entry in entries:
        if entry.key == intent.key and entry.kind in ("done", "failed"):
            return Effect(
                key=intent.key, decision="replay" if entry.kind == "done" else "failed", result=entry.result
            )
    return Effect(key=intent.key, decision="unknown")


def _canonical(arguments: Any) -> str:
    return msgspec.json.encode(arguments, order="sorted").decode()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
