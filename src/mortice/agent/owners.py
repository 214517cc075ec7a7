"""Which processes that run agents are alive: each holds a lock that dies with it, so no clock is needed to tell.

On SQLite, which is one host's, the lock is a file lock; on PostgreSQL it is an advisory lock of a connection that the
process holds for as long as it lives.
"""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

import sqlalchemy as sa


class Owners(Protocol):
    """`me` is this process's name, unique over all time."""

    me: str

    def alive(self, owner: str) -> bool: ...

    def takeover(self) -> AbstractContextManager[None]:
        """Only one process at a time looks for dead owners and takes their runs."""

    def close(self) -> None: ...


class FileOwners:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.me = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        with self.takeover():  # or another process would sweep the file before it is locked
            self._sweep()
            self._lock: IO[str] | None = open(folder / self.me, "w")  # noqa: SIM115 - held for life
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def alive(self, owner: str) -> bool:
        if owner == self.me:
            return self._lock is not None
        return _locked(self._folder / owner)

    @contextmanager
    def takeover(self) -> Iterator[None]:
        with open(self._folder / ".takeover", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def close(self) -> None:
        if self._lock is not None:
            (self._folder / self.me).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _sweep(self) -> None:
        """Files of processes that died: a missing one tells as much."""
        for path in self._folder.iterdir():
            if path.name != ".takeover" and not _locked(path):
                path.unlink(missing_ok=True)


def _locked(path: Path) -> bool:
    with suppress(FileNotFoundError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class AdvisoryOwners:
    """PostgreSQL: works across hosts."""

    def __init__(self, engine: sa.Engine) -> None:
        self.me = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._engine = engine
        self._held: sa.Connection | None = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._held.execute(sa.text("select pg_advisory_lock(:key)"), {"key": _key(self.me)})

    def alive(self, owner: str) -> bool:
        if owner == self.me:
            return self._held is not None
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            key = {"key": _key(owner)}
            got = connection.execute(sa.text("select pg_try_advisory_lock(:key)"), key).scalar_one()
            if got:
                connection.execute(sa.text("select pg_advisory_unlock(:key)"), key)
            return not got

    @contextmanager
    def takeover(self) -> Iterator[None]:
        with self._engine.begin() as connection:
            connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _key("takeover")})
            yield

    def close(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None
            self._engine.dispose()


def _key(owner: str) -> int:
    """63 bits of the name."""
    return int.from_bytes(hashlib.sha256(f"mortice:{owner}".encode()).digest()[:8], "big") >> 1
