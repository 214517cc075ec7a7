"""What runs do, in the hash-chained log: model calls, tool calls, consents, epochs. One chain a process, so that one sync
serves all of its runs; each record names its run. The sandbox's own chain has what happened inside.
"""

import asyncio
import secrets
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mortice.obs.audit import AuditLog, Place


class RunLog:
    """A record is in the file when `note` returns; the future it gives is done when it is on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chain = f"agents-{secrets.token_hex(6)}"
        self._log = AuditLog(folder)

    def note(self, run: str, kind: str, **fields: Any) -> "Future[Place]":
        return self._log.append(kind, chain=self.chain, run=run, **fields)

    async def safe(self, run: str, kind: str, **fields: Any) -> Place:
        """The same, on the disk when it returns: (number, hash) of the record."""
        return await asyncio.wrap_future(self.note(run, kind, **fields))

    def close(self) -> None:
        self._log.close()
