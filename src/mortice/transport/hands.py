"""The threads that move bytes: few, daemons, and of lower priority than the threads that compute."""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable

from mortice.transport.base import TransferResult
from mortice.transport.errors import Corrupt, PeerGone, TransferError

NICENESS = 10  # of the copying threads, above that of the process


class Hands:
    """Runs transfers on its own threads and turns how each ended into one call of its `done`."""

    def __init__(
        self, name: str, num_threads: int, idle: Callable[[], None] | None = None, idle_s: float | None = None
    ) -> None:
        """`idle` is called every `idle_s` by a thread that has nothing else to do, for back ends that need
        it."""
        self._idle, self._idle_s = idle, idle_s
        self.closing = threading.Event()
        self._gate = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True) for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, lease_id: str, move: Callable[[], int], done: Callable[[TransferResult], None]) -> None:
        """Queue `move` (bytes moved; raises TransferError). `done` gets the result, whatever happens to
        `move`."""
        begun = time.perf_counter()

        def job() -> None:
            num_bytes, error, num_corrupt = 0, None, 0
            try:
                self.pause()
                num_bytes = move()
            except TransferError as failure:
                error = str(failure)
                num_corrupt = failure.num_blocks if isinstance(failure, Corrupt) else 0
            except Exception as fault:  # a defect here must end this transfer, not the thread with all others
                error = f"{type(fault).__name__}: {fault}"
            done(TransferResult(lease_id, num_bytes, time.perf_counter() - begun, error, num_corrupt))

        with self._gate:
            open_ = not self.closing.is_set()
            if open_:
                self._jobs.put(job)
        if not open_:
            job()

    def pause(self) -> None:
        """Raise TransferError if the transport is closing."""
        if self.closing.is_set():
            raise PeerGone("the transport is closed")

    def stop(self) -> None:
        """Queued jobs, and running ones that look at `pause`, end with an error."""
        with self._gate:
            if not self.closing.is_set():
                self.closing.set()
                for _ in self._threads:
                    self._jobs.put(None)

    def close(self) -> None:
        """Stop, and wait for the threads. Idempotent."""
        self.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _run(self) -> None:
        lower_priority()
        while (job := self._next()) is not None:
            try:
                job()
            except Exception:  # `done` is the caller's: its defect is reported, the thread lives on
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))

    def _next(self) -> Callable[[], None] | None:
        while True:
            try:
                return self._jobs.get(timeout=self._idle_s)
            except queue.Empty:
                if self._idle is not None:
                    self._idle()


def lower_priority() -> None:
    """Make the calling thread give way to threads that compute. Where the kernel cannot do it for one thread
    (it can on Linux), priorities stay as they are."""
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS))
