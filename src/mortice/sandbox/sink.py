"""Receives the events of gVisor kernels and writes them into the chains of their boxes. Run as a process of its own.

Wire: SEQPACKET; the first packet is the kernel's version, answered with ours; each later one is a header (u16 its own size,
u16 type, u32 events dropped so far) and a protobuf message. A full socket makes the guest wait: a slow disk slows guests, it
loses nothing.
"""

import contextlib
import errno
import fcntl
import os
import re
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mortice.obs.audit import AuditLog
from mortice.sandbox.recorder import socket_path

IDLE_S = 30.0
MAX_PACKET = 1 << 20
TURN = 512  # packets of one kernel before the others have their turn
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

EXECVE, OPEN, CONNECT = 3, 7, 10


class Kernel:
    """One connected guest kernel."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.greeted = False
        self.chain = ""
        self.dropped = 0
        self.waiting: list[dict[str, Any]] = []

    def take(self, packet: bytes) -> None:
        if not self.greeted:
            self.sock.send(b"\x08\x01")
            self.greeted = True
            return
        size, kind, dropped = struct.unpack_from("<HHI", packet)
        event = parse(kind, packet[size:])
        if event is not None:
            box = event.pop("box")
            self.chain = self.chain or (box if re.fullmatch(r"b[0-9a-f]{12}", box) else "")
            self.waiting.append({"kind": "event", **event})
        if dropped > self.dropped:
            self.waiting.append({"kind": "gap", "lost": dropped - self.dropped, "source": "kernel"})
            self.dropped = dropped

    def flush(self, log: AuditLog) -> None:
        if self.waiting and self.chain:
            log.append_all(self.chain, self.waiting)
            self.waiting = []
        del self.waiting[:-4096]


def serve(root: Path) -> None:
    """Until nothing has been connected for half a minute."""
    with (root / "sink.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        path = socket_path(root)
        path.unlink(missing_ok=True)
        with (
            AuditLog(root / "audit") as log,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        ):
            listener.bind(str(path))
            os.chmod(path, 0o600)
            listener.listen(512)
            try:
                _loop(listener, log)
            finally:
                path.unlink(missing_ok=True)


def _loop(listener: socket.socket, log: AuditLog) -> None:
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        last = time.monotonic()
        while True:
            ready = selector.select(5.0)
            if not ready:
                if len(selector.get_map()) == 1 and time.monotonic() - last > IDLE_S:
                    return
                continue
            last = time.monotonic()
            for key, _ in ready:
                if key.fileobj is listener:
                    with contextlib.suppress(BlockingIOError):
                        sock, _ = listener.accept()
                        sock.setblocking(False)
                        selector.register(sock, selectors.EVENT_READ, Kernel(sock))
                elif not _drain(key.data, log):
                    selector.unregister(key.fileobj)
                    key.data.sock.close()


def _drain(kernel: Kernel, log: AuditLog) -> bool:
    """Read what is there, up to a turn's worth; False when the kernel has gone."""
    alive = True
    for _ in range(TURN):
        try:
            packet = kernel.sock.recv(MAX_PACKET)
        except BlockingIOError:
            break
        except OSError:
            packet = b""
        if not packet:
            alive = False
            break
        try:
            kernel.take(packet)
        except (struct.error, ValueError, IndexError, OSError):
            kernel.waiting.append({"kind": "gap", "lost": 1, "source": "unreadable"})
    kernel.flush(log)
    return alive


def parse(kind: int, message: bytes) -> dict[str, Any] | None:
    """The event as fields of a record, or None for one that is not kept: reads that went well or found nothing."""
    if kind not in (EXECVE, OPEN, CONNECT):
        return None
    fields: dict[int, list[Any]] = {}
    for number, value in protobuf(message):
        fields.setdefault(number, []).append(value)
    context = dict(protobuf(fields.get(1, [b""])[0]))
    event: dict[str, Any] = {
        "box": _text(context.get(6, b"")),
        "guest_ns": context.get(1, 0),
        "guest_pid": context.get(4, 0),
        "process": _text(context.get(9, b"")),
    }
    if kind == EXECVE:
        return event | {
            "what": "exec",
            "path": _text(fields.get(2, [b""])[0]),
            "argv": [_text(a) for a in fields.get(3, [])][:64],
        }
    if kind == CONNECT:
        return event | {"what": "connect", "address": address(fields.get(6, [b""])[0])}
    flags = fields.get(7, [0])[0]
    exit_fields = dict(protobuf(fields.get(2, [b""])[0]))
    number = exit_fields.get(2, 0)
    if not flags & WRITES and number in (0, errno.ENOENT, errno.ENOTDIR):
        return None
    path = _text(fields.get(6, [b""])[0])
    if not path.startswith("/"):
        base = _text(fields.get(5, [b""])[0]) or _text(context.get(8, b""))
        path = f"{base.rstrip('/')}/{path}"
    if path in ("/dev/null", "/dev/urandom") or (event["guest_pid"] == 1 and path.startswith("/run/")):
        return None
    return event | {
        "what": "open",
        "path": path,
        "flags": flags,
        "errno": errno.errorcode.get(number, number) if number else None,
    }


def protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, int or bytes) of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value if value < 1 << 63 else value - (1 << 64)
        elif wire == 2:
            size, at = _varint(data, at)
            yield tag >> 3, data[at : at + size]
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"no wire type {wire}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number without end")


def address(raw: bytes) -> str:
    """A sockaddr in words."""
    if len(raw) < 2:
        return raw.hex()
    (family,) = struct.unpack_from("<H", raw)
    if family == socket.AF_INET and len(raw) >= 8:
        return f"{socket.inet_ntop(socket.AF_INET, raw[4:8])}:{struct.unpack_from('>H', raw, 2)[0]}"
    if family == socket.AF_INET6 and len(raw) >= 24:
        return f"[{socket.inet_ntop(socket.AF_INET6, raw[8:24])}]:{struct.unpack_from('>H', raw, 2)[0]}"
    if family == socket.AF_UNIX:
        return "unix:" + _text(raw[2:].split(b"\0\0")[0].replace(b"\0", b"@"))
    return f"family {family}: {raw[2:].hex()}"


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
