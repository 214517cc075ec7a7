"""The process that workers are forked from. It has imported all that a worker needs, so that one more is there in
milliseconds and shares the pages of its libraries with the others.

Standard input is a socket; each packet on it carries one end of a pair, a line. On a line a launcher sends an `Order` with
standard output and error of the worker, and hears `Began` and `Ended`. A line that is closed ends its workers; when standard
input is closed all end. Nothing here starts a thread or computes anything: what is forked must be whole.
"""

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
from functools import partial

import msgspec

from mortice.engine import worker
from mortice.engine.config import MAX_ORDER, Began, Ended, FromNursery, Order, decode_order
from mortice.engine.parenthood import die_with_parent, say_name


def main() -> None:
    say_name("mortice-nursery")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    order = Nursery(socket.socket(fileno=sys.stdin.fileno())).run()
    if order is not None:
        worker.run(order.config)


class Nursery:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._open_line)
        self._pids: dict[socket.socket, set[int]] = {}
        self._order: Order | None = None  # in a child: what it is to be
        self._is_over = False

    def run(self) -> Order | None:
        """Until standard input ends. Returns a second time in each child, with its order."""
        while not self._is_over:
            for key, _ in self._selector.select():
                key.data()
                if (order := self._order) is not None:
                    return order
        return None

    def _open_line(self) -> None:
        data, descriptors, *_ = socket.recv_fds(self._control, 1, 1)
        if not data:
            self._is_over = True
            return
        line = socket.socket(fileno=descriptors[0])
        self._pids[line] = set()
        self._selector.register(line, selectors.EVENT_READ, partial(self._hear, line))

    def _hear(self, line: socket.socket) -> None:
        try:
            data, streams, *_ = socket.recv_fds(line, MAX_ORDER, 2)
        except ConnectionResetError:
            data, streams = b"", []
        if not data:
            self._selector.unregister(line)
            line.close()
            for pid in self._pids.pop(line):
                os.kill(pid, signal.SIGKILL)  # it is not reaped yet, so the number is still its own
            return
        order = decode_order(data)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become(order, streams, parent)
            return
        for stream in streams:
            os.close(stream)
        self._pids[line].add(pid)
        watched = os.pidfd_open(pid)
        ended = partial(self._reap, line, pid, watched, order.config.worker_id)
        self._selector.register(watched, selectors.EVENT_READ, ended)
        _say(line, Began(order.config.worker_id, pid))

    def _reap(self, line: socket.socket, pid: int, watched: int, worker_id: str) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._selector.unregister(watched)
        os.close(watched)
        if line in self._pids:
            self._pids[line].discard(pid)
            _say(line, Ended(worker_id, code))

    def _become(self, order: Order, streams: list[int], parent: int) -> None:
        """In the child: nothing of the nursery stays open, and the streams, environment and folder are its launcher's."""
        self._order = order
        die_with_parent(parent)
        say_name(order.config.worker_id)
        gc.unfreeze()
        for key in list(self._selector.get_map().values()):
            if key.fd != 0:
                os.close(key.fd)
        self._control.detach()
        self._selector.close()
        for line in self._pids:
            line.detach()
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(order.environment)
        os.chdir(order.folder)


def _say(line: socket.socket, word: FromNursery) -> None:
    with contextlib.suppress(OSError):  # a launcher that is gone hears nothing: its line says so next
        line.send(msgspec.json.encode(word))


if __name__ == "__main__":
    main()
