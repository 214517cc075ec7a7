"""A log that shows whether it was altered: each line holds the hash of the one before it.

Several processes append to one chain under a file lock; one fdatasync covers all that waits for it (group commit). A second
chain, the spine, writes down the heads of all others every second and signs them, so that a cut-off tail shows too.
`audit_verify` reads; this module writes.
"""

import fcntl
import hashlib
import hmac
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from mortice.obs.audit_keys import SigningKey
from mortice.obs.clock import monotonic_ns

GENESIS = "0" * 64
SPINE = "spine"
MAX_PENDING = 65536
MAX_OPEN = 256
MAX_TEXT = 16384
MAX_LINE = 1 << 20
TAIL = 8192  # of a chain that another process has appended to: mostly the last line is in it
HEAD_EVERY_S = 1.0

Place = tuple[int, str]
"""Number and hash of a record."""

_SECRET_NAME = re.compile(r"(?i)(authorization|api[-_]?key|token|secret|password|passwd|cookie|credential)")
_SECRET_TEXT = re.compile(
    r"(?i)\b(bearer\s+[a-z0-9._~+/=-]{8,}|sk-[a-z0-9_-]{16,}|gh[pousr]_[a-z0-9]{20,}|AKIA[0-9A-Z]{16})"
)


class AuditLog:
    """Appends to the chains in `folder`. One object a process; close it to have everything on the disk.

    A record is in the file when `append` returns, so it outlives this process; the future that `append` returns is done
    once it is on the disk too, so it outlives the machine. One fdatasync serves all records that wait for it. When more
    than 65,536 wait, `append` blocks: a record is never dropped.
    """

    def __init__(self, folder: Path, *, sync: bool = True, head_every_s: float = HEAD_EVERY_S) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._sync = sync
        self._head_every_s = head_every_s
        self._key = SigningKey(folder)
        self._boot_id = _boot_id()
        self._pending: list[tuple[str, Place, Future[Place]]] = []
        self._ready = threading.Condition()
        self._closing = False
        self._chains: dict[str, _Chain] = {}
        self._unheaded: dict[str, Place] = {}
        self._next_heads = 0.0
        self._thread = threading.Thread(target=self._sync_groups, name="audit", daemon=True)
        self._thread.start()

    def append(self, kind: str, *, chain: str = "host", **fields: Any) -> "Future[Place]":
        """Write one record. Secret-looking values are replaced by salted hashes here, the only place records come in."""
        return self.append_all(chain, [{"kind": kind, **fields}])

    def append_all(self, chain: str, entries: list[dict[str, Any]]) -> "Future[Place]":
        """Write several records, each with its `kind`; the future is that of the last."""
        stamp = {"boot_id": self._boot_id, "mono_ns": monotonic_ns(), "ts_ns": time.time_ns()}
        records = [stamp | {name: self._clean(name, value) for name, value in e.items()} for e in entries]
        done: Future[Place] = Future()
        done.set_running_or_notify_cancel()  # whoever waits may be cancelled; the record is not
        with self._ready:
            if self._closing:
                raise RuntimeError("the audit log is closed")
            while len(self._pending) >= MAX_PENDING:
                self._ready.wait()
            place = self._chain(chain).extend(records)
            self._pending.append((chain, place, done))
            if len(self._pending) == 1:
                self._ready.notify_all()
        return done

    def head(self, chain: str) -> tuple[int, str]:
        """(seq, hash) of the last record of a chain that is on the disk; (-1, zeros) of an empty one."""
        with open_chain(self.folder, chain) as end:
            return end.seq, end.hash

    def close(self) -> None:
        with self._ready:
            self._closing = True
            self._ready.notify_all()
        self._thread.join()

    def __enter__(self) -> "AuditLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _clean(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): self._clean(str(k), v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._clean(name, v) for v in value[:1024]]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        if isinstance(value, str):
            if _SECRET_NAME.search(name):
                return self._masked(value)
            value = _SECRET_TEXT.sub(lambda found: self._masked(found.group()), value)
            if len(value) > MAX_TEXT:
                digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
                return {"head": value[:1024], "chars": len(value), "sha256": digest}
            return value.encode("utf-8", "backslashreplace").decode()
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if abs(value) < 1 << 62 else str(value)
        return str(value)

    def _masked(self, value: str) -> str:
        return "[hidden:" + hmac.new(self._key.salt, value.encode(), hashlib.sha256).hexdigest()[:16] + "]"

    def _chain(self, name: str) -> "_Chain":
        end = self._chains.get(name)
        if end is None:
            end = self._chains[name] = _Chain(self.folder, name)
        return end

    def _sync_groups(self) -> None:
        while True:
            with self._ready:
                if not self._pending and not self._closing:
                    self._ready.wait(self._head_every_s if self._unheaded else None)
                group, self._pending = self._pending, []
                files = {name: self._chains[name] for name, _, _ in group}
                for name, place, _ in group:
                    self._unheaded[name] = place
                closing = self._closing
            problem = None
            try:
                for end in files.values():
                    if self._sync:
                        end.sync()
            except OSError as error:  # every waiter learns it: nothing may act on an intent that is not safe
                problem = error
            for _, place, done in group:
                done.set_exception(problem) if problem else done.set_result(place)
            with self._ready:
                self._ready.notify_all()
                if self._unheaded and (closing or time.monotonic() >= self._next_heads):
                    self._write_heads()
                if closing and not self._pending:
                    for end in self._chains.values():
                        end.close()
                    self._chains.clear()
                    return
                while len(self._chains) > MAX_OPEN and not self._pending:
                    self._chains.pop(next(iter(self._chains))).close()

    def _write_heads(self) -> None:
        stamp = {"boot_id": self._boot_id, "mono_ns": monotonic_ns(), "ts_ns": time.time_ns()}
        spine = self._chain(SPINE)
        records = []
        for chain, (seq, digest) in self._unheaded.items():
            signature = self._key.sign(chain, seq, digest)
            head = {
                "kind": "head",
                "chain": chain,
                "head_seq": seq,
                "head_hash": digest,
                "signature": signature,
            }
            records.append(stamp | head)
        spine.extend(records)
        if self._sync:
            spine.sync()
        self._unheaded.clear()
        self._next_heads = time.monotonic() + self._head_every_s


class _Chain:
    """The end of one chain file; `extend` works under the file's lock and sees what other processes appended."""

    def __init__(self, folder: Path, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name) or name.startswith("."):
            raise ValueError(f"no chain can be called {name!r}")
        self._path = folder / f"{name}.jsonl"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = -1
        self.seq, self.hash = -1, GENESIS

    def extend(self, records: list[dict[str, Any]]) -> Place:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            torn = self.catch_up()
            if torn:
                os.ftruncate(self._fd, self._size)
                note = {key: records[0][key] for key in ("ts_ns", "mono_ns", "boot_id")}
                records = [{"kind": "recovered", "torn_bytes": torn, **note}, *records]
            lines = []
            for record in records:
                self.seq += 1
                line = msgspec.json.encode({**record, "seq": self.seq, "prev": self.hash}, order="sorted")
                self.hash = hashlib.sha256(line).hexdigest()
                lines.append(line + b"\n")
            data = b"".join(lines)
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            self._size += len(data)
            return self.seq, self.hash
        except BaseException:
            self._size = -1  # read the end anew next time
            raise
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def catch_up(self) -> int:
        """Find the end again if another process wrote; returns the bytes of a torn last line."""
        size = os.fstat(self._fd).st_size
        if size == self._size:
            return 0
        self.seq, self.hash, self._size = -1, GENESIS, 0
        window = min(size, TAIL)
        while True:
            tail = os.pread(self._fd, window, size - window)
            end = tail.rfind(b"\n")
            if window == min(size, MAX_LINE) or tail.rfind(b"\n", 0, max(0, end)) >= 0:
                break
            window = min(size, MAX_LINE, 8 * window)
        if end < 0:
            return size
        line = tail[tail.rfind(b"\n", 0, end) + 1 : end]
        self.seq = int(msgspec.json.decode(line)["seq"])
        self.hash = hashlib.sha256(line).hexdigest()
        self._size = size - window + end + 1
        return size - self._size

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> "_Chain":
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        self.catch_up()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_chain(folder: Path, name: str) -> _Chain:
    """A chain's end as it stands; use it in a `with`."""
    return _Chain(folder, name)


def chains_in(folder: Path) -> Iterator[str]:
    """Names of the chains of a log, the spine left out."""
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem != SPINE:
            yield path.stem


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
