"""What an epoch is: a run's journal, its machine and its audit log at one moment, bound so that each vouches for the others.

The machine's share is a `MachineState`, the same for everybody. The journal's is its keeper's: a caller with a journal of
its own writes what it needs into an `Epoch`, one small file here; agents and workflows, whose journal is a database, seal
its digest there (`mortice.agent.epochs`).
"""

from pathlib import Path
from typing import Any

import msgspec

from mortice.sandbox.contract import SnapshotRefused
from mortice.sandbox.home import Home, NewerVersion, check_version, digest_of

VERSION = 1  # of epochs that are written; older ones are read


class MachineState(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox at an epoch: a snapshot, the digest of its manifest, and the record of its chain that it was taken at."""

    snapshot: str
    digest: str
    chain: str
    seq: int
    head: str


class Epoch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state of a run after one of its turns. `journal` is the caller's: a step number, a database row, what it needs."""

    run: str
    number: int
    journal: dict[str, Any]
    box: str
    snapshot: str
    audit_chain: str
    audit_seq: int
    audit_head: str
    num_effects: int
    created_at: float
    pinned: bool = False
    version: int = 0
    digest: str = ""


def read_epochs(home: Home, run: str) -> list[Epoch]:
    """Every sound epoch of a run, oldest first. Raises SnapshotRefused for one of a later version."""
    found = (read_epoch(path, run) for path in sorted((home.runs / run / "epochs").glob("*.json")))
    return [epoch for epoch in found if epoch is not None]


def read_epoch(path: Path, run: str) -> Epoch | None:
    """None for a damaged one. Raises SnapshotRefused for a later version's: passing it over would repeat its turn."""
    try:
        data = path.read_bytes()
        check_version(data, VERSION)
        epoch = msgspec.json.decode(data, type=Epoch)
    except NewerVersion as error:
        raise SnapshotRefused(f"epoch {path.stem} of run {run!r}: {error}") from None
    except (OSError, msgspec.DecodeError):
        return None
    return epoch if epoch.digest == digest_of(epoch) else None
