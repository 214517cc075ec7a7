"""The epochs of a run whose caller has a journal of its own (see `epoch`).

A turn ends by committing an epoch; after any crash the run goes on from the last one, whole. An epoch is one small file,
written aside, synced and renamed, that names a published snapshot: it exists whole or not at all.
"""

import re
import time
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from mortice.sandbox.box import Box
from mortice.sandbox.contract import LeaseLost, SandboxBusy, SandboxLost, SandboxNotFound, SnapshotRefused
from mortice.sandbox.epoch import VERSION, Epoch, read_epoch, read_epochs
from mortice.sandbox.home import digest_of, write_once
from mortice.sandbox.supervisor import Sandboxes
from mortice.specs.errors import RequestError

KEEP_LAST = 3


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """`attached`: the living sandbox was taken over and may be ahead of the epoch: send the turn's cell ids again, they run
    once. `restored`: it stands exactly at the epoch."""

    box: Box
    epoch: Epoch
    how: Literal["attached", "restored"]


class Effects(Protocol):
    """The caller's ledger of what a run did to the outside world (`mortice.agent.ledger.RunEffects` is one)."""

    @property
    def num_entries(self) -> int: ...

    def rewind(self, epoch: int) -> None:
        """The run goes on from this epoch: what is newer has happened all the same, and the ledger has to say so."""
        ...


class Epochs:
    """The epochs of one run. `effects`: its ledger; without one the run is taken to have no effects outside its sandbox."""

    def __init__(self, boxes: Sandboxes, run: str, *, effects: Effects | None = None) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run):
            raise RequestError(
                "a run's name has letters, digits, dots, dashes and underscores, at most 100", param="run"
            )
        self.run = run
        self._boxes = boxes
        self._folder = boxes.home.runs / run
        (self._folder / "epochs").mkdir(parents=True, exist_ok=True)
        self._effects = effects

    async def commit(self, box: Box, journal: dict[str, Any], *, pinned: bool = False) -> Epoch:
        """Publish the state after a turn. A sandbox in which nothing ran since its last snapshot is not saved again."""
        last = self.last()
        number = last.number + 1 if last else 0
        quiet = bool((await box.status()).get("quiet"))  # else something inside may have gone on by itself
        if box.changed or not quiet or box.record.last_snapshot is None:
            snapshot = await box.snapshot(epoch=number)
        else:
            snapshot = box.record.last_snapshot
        machine = self._boxes.snapshots.manifest(snapshot).state
        box.check_lease()
        epoch = Epoch(
            run=self.run, number=number, journal=journal, box=box.record.id, snapshot=snapshot,
            audit_chain=machine.chain, audit_seq=machine.seq, audit_head=machine.head,
            num_effects=self._effects.num_entries if self._effects else 0, created_at=time.time(), pinned=pinned,
            version=VERSION,
        )  # fmt: skip
        epoch = msgspec.structs.replace(epoch, digest=digest_of(epoch))
        try:
            write_once(self._path(number), epoch)
        except FileExistsError:
            raise LeaseLost(
                f"another supervisor committed epoch {number} of run {self.run!r}; resume from it",
                param="run",
            ) from None
        box.note("epoch", run=self.run, epoch=number, snapshot=snapshot, digest=epoch.digest)
        self._drop_old()
        return epoch

    def last(self) -> Epoch | None:
        """The newest epoch that can be read and was not altered."""
        for path in sorted((self._folder / "epochs").glob("*.json"), reverse=True):
            epoch = read_epoch(path, self.run)
            if epoch is not None:
                return epoch
        return None

    def all(self) -> list[Epoch]:
        """Every sound epoch, oldest first."""
        return read_epochs(self._boxes.home, self.run)

    async def resume(self, *, rewind: bool = False, keep: bool = False) -> Resumed:
        """Go on after a crash: take over the living sandbox, or restore the last epoch whose snapshot is sound.

        `rewind` leaves a living sandbox alone and goes back to the epoch as it was. Effects after that epoch have happened;
        the ledger is told where the run goes on, and replays them.
        """
        last = self.last()
        if last is None:
            raise SandboxNotFound(f"run {self.run!r} has no epoch to resume from", param="run")
        if not rewind:
            try:
                return Resumed(box=await self._boxes.attach(last.box), epoch=last, how="attached")
            except (SandboxLost, SandboxNotFound):
                pass  # then from its snapshot
            except SandboxBusy:
                raise
        problems = []
        for epoch in reversed(self.all()):
            try:
                box = await self._boxes.restore(epoch.snapshot, keep=keep)
            except (SnapshotRefused, SandboxNotFound) as error:
                problems.append(error.message)
                continue
            if self._effects is not None:
                self._effects.rewind(epoch.number)
            return Resumed(box=box, epoch=epoch, how="restored")
        raise SnapshotRefused(f"no epoch of run {self.run!r} can be restored: {'; '.join(problems)}")

    def _drop_old(self) -> None:
        """Snapshots of all but the last epochs go; pinned ones stay."""
        epochs = self.all()
        kept = {e.snapshot for e in epochs if e.pinned} | {e.snapshot for e in epochs[-KEEP_LAST:]}
        for epoch in epochs[:-KEEP_LAST]:
            if not epoch.pinned:
                self._path(epoch.number).unlink()
                if epoch.snapshot not in kept:
                    try:
                        self._boxes.snapshots.remove(epoch.snapshot)
                    except SandboxNotFound:
                        continue

    def _path(self, number: int) -> Path:
        return self._folder / "epochs" / f"{number:08d}.json"
