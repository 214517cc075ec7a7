"""Cells, commands and file operations under way, and what is kept of their output."""

import binascii
import time

CHUNK = 48 * 1024  # of raw bytes in one line, before base64
HIGH_WATER = 512 * 1024  # of unsent lines: beyond it no output is read from jobs


def b64(data):
    return binascii.b2a_base64(data, newline=False).decode()


class Capture:
    """The head and the tail of a stream that may be endless, in at most `cap` bytes."""

    def __init__(self, cap):
        self.cap = cap
        self.head = bytearray()
        self.tail = bytearray()
        self.total = 0

    def add(self, data):
        self.total += len(data)
        room = self.cap - self.cap // 4 - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        if data:
            self.tail += data
            if len(self.tail) > 2 * (self.cap // 4) + CHUNK:
                del self.tail[: len(self.tail) - self.cap // 4]

    def text(self):
        tail = bytes(self.tail[-(self.cap // 4) :]) if self.cap // 4 else b""
        omitted = self.total - len(self.head) - len(tail)
        middle = b"\n[... %d bytes omitted ...]\n" % omitted if omitted > 0 else b""
        return (bytes(self.head) + middle + tail).decode("utf-8", "replace")


class Job:
    """One cell, command or file operation under way."""

    def __init__(self, request, kind):
        self.id = request["id"]
        self.kind = kind
        self.pid = 0
        self.fds = {}  # fd -> 1 stdout, 2 stderr
        self.stdin_fd = None
        self.bad_fd = None  # where a command tells why it could not start
        self.stdin = bytearray()
        self.stdin_eof = False
        self.started = time.monotonic()
        self.deadline = self.started + request.get("timeout", 60.0)
        self.remaining = None  # of the deadline, while parked
        self.kill_at = None
        self.reason = None
        self.limit = request.get("limit", 64 << 20)
        cap = request.get("cap", 1 << 20)
        self.out = {1: Capture(cap), 2: Capture(cap)}
        self.raw = request.get("raw", False)
        self.stream = request.get("stream", False) or self.raw
