"""An audit log as those look at it who prove runs: each chain is read once, and what is appended is read on from there."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from mortice.obs.audit import GENESIS, chains_in


class LogView:
    """Of the log in a folder. Records after the first that is wrong count for nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._chains: dict[str, _Chain] = {}

    def has(self, chain: str) -> bool:
        return self._path(chain).exists()

    def broken(self, chain: str, seq: int, head: str) -> list[str]:
        """What is wrong with a chain up to a record known from elsewhere by number and hash."""
        view = self._read(chain)
        if seq < len(view.hashes):
            return [] if view.hashes[seq] == head else [f"audit log {chain}: record {seq} is another one"]
        return [f"audit log {chain}: {view.trouble or f'it was cut off before record {seq}'}"]

    def steps(self, run: str, *, since: str) -> dict[str, set[str]]:
        """Digests by step that the log has for a run, in a chain and in those written to after it."""
        begun = self._path(since).stat().st_mtime
        found: dict[str, set[str]] = {}
        for chain in chains_in(self._folder):
            if chain == since or self._path(chain).stat().st_mtime >= begun:
                for step, digests in self._read(chain).steps.get(run, {}).items():
                    found.setdefault(step, set()).update(digests)
        return found

    def _path(self, chain: str) -> Path:
        return self._folder / f"{chain}.jsonl"

    def _read(self, chain: str) -> "_Chain":
        view = self._chains.get(chain)
        path = self._path(chain)
        if view is None or path.stat().st_size < view.offset:
            view = self._chains[chain] = _Chain()
        view.read_on(path)
        return view


class _Chain:
    def __init__(self) -> None:
        self.offset = 0
        self.hashes: list[str] = []  # by number
        self.trouble: str | None = None
        self.steps: dict[str, dict[str, set[str]]] = {}  # run: step: digests

    def read_on(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if self.trouble is not None or not line.endswith(b"\n"):
                    return  # the end of a line that is being written
                self.offset += len(line)
                self._take(line.removesuffix(b"\n"))

    def _take(self, line: bytes) -> None:
        number = len(self.hashes)
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            self.trouble = f"line {number + 1} is no record"
            return
        before = self.hashes[-1] if self.hashes else GENESIS
        if record.get("prev") != before or record.get("seq") != number:
            self.trouble = f"line {number + 1} does not follow the one before it"
            return
        self.hashes.append(hashlib.sha256(line).hexdigest())
        if "step" in record:
            known = self.steps.setdefault(str(record.get("run")), {})
            known.setdefault(str(record["step"]), set()).add(str(record.get("sha256")))
