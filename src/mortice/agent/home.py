"""Where runs live on disk, and which database they are in."""

import os
import re
import uuid
from pathlib import Path

import msgspec

from mortice.specs.errors import RequestError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Home(msgspec.Struct, frozen=True, kw_only=True):
    """`folder` holds journal, ledger, audit log, artifacts and pins; `db` is the URL of journal and ledger."""

    folder: Path
    db: str

    @property
    def ledger(self) -> str:
        """Of its own file on SQLite: the two are written at once by several processes."""
        return f"sqlite:///{self.folder / 'effects.db'}" if self.db.startswith("sqlite") else self.db

    @property
    def audit(self) -> Path:
        return self.folder / "audit"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    @property
    def pins(self) -> Path:
        return self.folder / "pins.json"


def home(folder: Path | None = None, db: str | None = None) -> Home:
    """`$MORTICE_AGENT_HOME`, else under `$XDG_STATE_HOME`; `$MORTICE_AGENT_DB`, else a file there."""
    if folder is None:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(os.environ.get("MORTICE_AGENT_HOME") or Path(state) / "mortice" / "agent")
    folder = folder.resolve()
    url = db or os.environ.get("MORTICE_AGENT_DB") or f"sqlite:///{folder / 'runs.db'}"
    return Home(folder=folder, db=url)


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def checked_id(run_id: str) -> str:
    """RequestError unless it is 1 to 64 letters, digits, '-' and '_'."""
    if not _ID.fullmatch(run_id):
        raise RequestError("1 to 64 letters, digits, '-' and '_'", param="id")
    return run_id
