"""Cells, one after the other, in the interpreter that lives between them; a new one when it dies."""

import _signal as signal  # type: ignore[import-not-found]  # what is around it brings enum: a megabyte a process
import os
import select
import time

from mortice.sandbox.guest.interpreter import Interpreter, write_all
from mortice.sandbox.guest.jobs import CHUNK
from mortice.sandbox.guest.system import become_user, dup_above
from mortice.sandbox.guest.wire import dumps, loads

MAX_ANSWER = 4 << 20


class Cells:
    """The interpreter's process and the cells that wait for it."""

    def __init__(self, agent):
        self.agent = agent
        self.poll = agent.poll
        self.queue = []
        self.running = None
        self.process = None  # (pid, control fd, result fd, stdout fd, stderr fd)
        self.heard = bytearray()
        self.renewing = None

    def add(self, job):
        self.queue.append(job)
        self.next()

    def drop(self, job):
        """Take back a cell that has not begun; whether it was one."""
        if job not in self.queue:
            return False
        self.queue.remove(job)
        return True

    def busy(self):
        """The id of the cell that runs or is next, or None."""
        if self.running is not None:
            return self.running.id
        return self.queue[0].id if self.queue else None

    def signal(self, job, number):
        """To the interpreter, while it runs this cell."""
        if job is self.running and self.process:
            try:
                os.kill(self.process[0], number)
            except ProcessLookupError:
                pass

    def is_interpreter(self, pid):
        return self.process is not None and pid == self.process[0]

    def event(self, fd):
        """Something to read from the interpreter; whether the descriptor was one of its."""
        if self.process is None or fd not in self.process[2:]:
            return False
        if fd == self.process[2]:
            self.read()
        else:
            self.discard(fd)
        return True

    def renew(self, request):
        """Have the interpreter draw anew; the request is answered when it has."""
        self.renewing = request["id"]
        self.tell({"op": "renew", "seed": request["seed"], "generation": request["generation"]})

    def start(self):
        ctl_r, ctl_w = os.pipe2(os.O_CLOEXEC)
        res_r, res_w = os.pipe2(os.O_CLOEXEC)
        out_r, out_w = os.pipe2(os.O_CLOEXEC)
        err_r, err_w = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                null = os.open("/dev/null", os.O_RDONLY)
                ends = [os.dup(fd) for fd in (null, out_w, err_w, ctl_r, res_w)]
                ends = [dup_above(fd) for fd in ends]
                for target, fd in enumerate(ends):
                    os.dup2(fd, target, inheritable=target < 3)
                os.closerange(5, 1024)
                become_user(self.agent.uid)
                env = self.agent.base_env()
                os.environ.clear()
                os.environ.update(env)
                os.chdir("/work")
                Interpreter().run()
            except BaseException as error:
                write_all(2, ("the interpreter failed: %r\n" % error).encode())
            finally:
                os._exit(70)
        for fd in (ctl_r, res_w, out_w, err_w):
            os.close(fd)
        for fd in (res_r, out_r, err_r):
            os.set_blocking(fd, False)
            self.poll.register(fd, select.POLLIN)
        self.process = (pid, ctl_w, res_r, out_r, err_r)
        self.heard.clear()

    def tell(self, message):
        write_all(self.process[1], dumps(message).encode() + b"\n")

    def next(self):
        if self.running is not None or not self.queue:
            return
        job = self.running = self.queue.pop(0)
        job.started = time.monotonic()
        for fd, which in ((self.process[3], 1), (self.process[4], 2)):
            self.discard_all(fd)
            job.fds[fd] = which
            self.agent.children.by_fd[fd] = job
        self.tell({"op": "cell", "id": job.id, "code": job.code})

    def discard(self, fd):
        try:
            os.read(fd, CHUNK)
        except OSError:
            pass

    def discard_all(self, fd):
        """Output that threads or children wrote between two cells belongs to none."""
        for _ in range(24):
            try:
                if not os.read(fd, CHUNK):
                    return
            except OSError:
                return

    def release(self):
        job, self.running = self.running, None
        self.agent.children.drain(job)
        for fd in list(job.fds):
            del self.agent.children.by_fd[fd]
        job.fds.clear()
        return job

    def read(self):
        try:
            data = os.read(self.process[2], 65536)
        except BlockingIOError:
            return
        if not data:
            self.poll.unregister(self.process[2])  # its death is reaped
            return
        self.heard += data
        if len(self.heard) > MAX_ANSWER:
            os.kill(self.process[0], signal.SIGKILL)
            self.heard.clear()
            return
        while True:
            end = self.heard.find(b"\n")
            if end < 0:
                return
            line = bytes(self.heard[:end])
            del self.heard[: end + 1]
            try:
                self.says(loads(line))
            except (ValueError, KeyError, TypeError):
                os.kill(
                    self.process[0], signal.SIGKILL
                )  # guest code wrote into its own interpreter's channel
                return

    def says(self, message):
        if message["op"] == "renewed":
            self.agent.send(ev="ack", id=self.renewing, ok=True)
            return
        if self.running is None or message["id"] != self.running.id:
            return
        job = self.release()
        error = message.get("error")
        reason = None
        if error:
            error = {k: str(error.get(k))[:65536] for k in ("type", "message", "traceback")}
            reason = {"MemoryError": "oom", "ENOSPC": "disk", "EAGAIN": "processes"}.get(
                str(message.get("cause"))
            )
        value = message.get("value")
        value = None if value is None else str(value)[:65536]
        self.agent.finish(
            job, ok=not error and job.reason is None, exit=1 if error else 0, cpu=float(message.get("cpu") or 0),
            value=value, error=error, reason=job.reason or reason,
        )  # fmt: skip
        self.next()

    def died(self, code, cpu):
        job = self.release() if self.running is not None else None
        for fd in self.process[2:]:
            try:
                self.poll.unregister(fd)
            except KeyError:
                pass
        for fd in self.process[1:]:
            os.close(fd)
        self.start()
        if job is not None:
            self.agent.finish(
                job, ok=False, exit=code, cpu=cpu,
                reason=job.reason or self.agent.out_of_memory(code) or "interpreter_exit", restarted=True,
            )  # fmt: skip
        self.next()
