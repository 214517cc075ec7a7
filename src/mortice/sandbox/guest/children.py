"""Commands and file operations in processes of their own: started, fed, listened to, reaped."""

import _posixsubprocess
import _signal as signal  # type: ignore[import-not-found]  # what is around it brings enum: a megabyte a process
import errno
import os
import select

from mortice.sandbox.guest.interpreter import write_all
from mortice.sandbox.guest.jobs import CHUNK, b64
from mortice.sandbox.guest.system import become_user


class Children:
    """Every process that the agent started, but the interpreter; and every stream that a job writes."""

    def __init__(self, agent):
        self.agent = agent
        self.poll = agent.poll
        self.uid = agent.uid
        self.by_fd = {}
        self.by_pid = {}

    def spawn(self, job, body):
        in_r, in_w = os.pipe2(os.O_CLOEXEC)
        out_r, out_w = os.pipe2(os.O_CLOEXEC)
        err_r, err_w = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError as error:
            for fd in (in_r, in_w, out_r, out_w, err_r, err_w):
                os.close(fd)
            self.agent.finish(
                job, ok=False, exit=None, cpu=0.0, reason="processes", errno=errno.errorcode.get(error.errno)
            )
            return
        if pid == 0:
            code = 126
            try:
                os.setsid()
                os.dup2(in_r, 0)
                os.dup2(out_w, 1)
                os.dup2(err_w, 2)
                os.closerange(3, 1024)
                become_user(self.uid)
                body()
                code = 0
            except FileNotFoundError as error:
                write_all(2, ("%s: %s\n" % (error.filename, error.strerror)).encode())
                code = 127
            except OSError as error:
                write_all(2, ("%s: %s\n" % (error.filename or "error", error.strerror)).encode())
                code = (
                    200 + (error.errno if job.kind == "file" and error.errno < 55 else 0)
                    if job.kind == "file"
                    else 126
                )
            except BaseException as error:
                write_all(2, ("%s: %s\n" % (type(error).__name__, error)).encode())
            finally:
                os._exit(code)
        self.adopt(job, pid, in_r, in_w, out_r, out_w, err_r, err_w)

    def launch(self, job, argv, env, cwd):
        """A command, started without a step of Python between fork and exec: a fork's copies are dear in here."""
        ends = [os.pipe2(os.O_CLOEXEC) for _ in range(4)]
        (in_r, in_w), (out_r, out_w), (err_r, err_w), (bad_r, bad_w) = ends
        places = (
            [argv[0]]
            if "/" in argv[0]
            else [p + "/" + argv[0] for p in env.get("PATH", "/usr/bin:/bin").split(":")]
        )
        root = os.getuid() == 0
        try:
            pid = _posixsubprocess.fork_exec(
                argv, tuple(os.fsencode(p) for p in places), True, (bad_w,), cwd,
                [os.fsencode("%s=%s" % item) for item in env.items()],
                in_r, in_w, out_r, out_w, err_r, err_w, bad_r, bad_w, True, True, -1,
                self.uid if root else None, [] if root else None, self.uid if root else None, 0o022, None, True,
            )  # fmt: skip
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            for pair in ends:
                for fd in pair:
                    os.close(fd)
            full = isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM)
            job.out[2].add(("%s: %s\n" % (type(error).__name__, error)).encode())
            self.agent.finish(job, ok=False, exit=None, cpu=0.0, reason="processes" if full else "not_found")
            return
        os.close(bad_w)
        job.bad_fd = bad_r
        self.adopt(job, pid, in_r, in_w, out_r, out_w, err_r, err_w)

    def adopt(self, job, pid, in_r, in_w, out_r, out_w, err_r, err_w):
        for fd in (in_r, out_w, err_w):
            os.close(fd)
        job.pid = pid
        self.by_pid[pid] = job
        for fd, which in ((out_r, 1), (err_r, 2)):
            os.set_blocking(fd, False)
            job.fds[fd] = which
            self.by_fd[fd] = job
            self.poll.register(fd, select.POLLIN)
        os.set_blocking(in_w, False)
        job.stdin_fd = in_w
        self.feed(job)

    def why_not_started(self, job):
        """What stood in the way of exec, written by the child for its parent: `OSError:<errno in hex>:<what>`."""
        said = os.read(job.bad_fd, 4096)
        os.close(job.bad_fd)
        job.bad_fd = None
        if not said:
            return None
        number = int(said.split(b":")[1] or b"0", 16)
        job.out[2].add(("%s: %s\n" % ("cwd" if b":noexec" in said else "exec", os.strerror(number))).encode())
        return number

    def feed(self, job):
        while job.stdin and job.stdin_fd is not None:
            try:
                sent = os.write(job.stdin_fd, job.stdin[:65536])
            except BlockingIOError:
                if job.stdin_fd not in self.by_fd:
                    self.by_fd[job.stdin_fd] = job
                    self.poll.register(job.stdin_fd, select.POLLOUT)
                return
            except OSError:  # the command has closed its input
                job.stdin.clear()
                self.close(job.stdin_fd)
                job.stdin_fd = None
                return
            del job.stdin[:sent]
        if job.stdin_fd is not None:
            if job.stdin_eof:
                self.close(job.stdin_fd)
                job.stdin_fd = None
            elif job.stdin_fd in self.by_fd:
                self.poll.unregister(job.stdin_fd)
                del self.by_fd[job.stdin_fd]

    def close(self, fd):
        if fd in self.by_fd:
            self.poll.unregister(fd)
            job = self.by_fd.pop(fd)
            job.fds.pop(fd, None)
        os.close(fd)

    def read(self, fd):
        job = self.by_fd[fd]
        if fd == job.stdin_fd:
            self.feed(job)
            return
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        if data:
            self.take(job, job.fds[fd], data)
        elif job.kind != "cell":
            self.close(fd)

    def take(self, job, which, data):
        job.out[which].add(data)
        if job.stream and (which == 1 or not job.raw):
            self.agent.send(ev="out", id=job.id, s=which, d=b64(data))
        if job.out[1].total + job.out[2].total > job.limit and job.reason is None:
            job.reason = "output"
            self.agent.kill(job, signal.SIGKILL)

    def drain(self, job):
        """What was written before the end has arrived by now; no more than a pipe holds, or a child could keep us."""
        for fd, which in list(job.fds.items()):
            for _ in range(24):
                try:
                    data = os.read(fd, CHUNK)
                except OSError:
                    break
                if not data:
                    break
                self.take(job, which, data)

    def signal(self, job, number):
        """To a command's whole process group."""
        if job.pid:
            try:
                os.killpg(job.pid, number)
            except ProcessLookupError:
                pass

    def reap(self):
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            cpu = round(usage.ru_utime + usage.ru_stime, 6)
            if self.agent.cells.is_interpreter(pid):
                self.agent.cells.died(code, cpu)
            elif pid in self.by_pid:
                job = self.by_pid.pop(pid)
                self.drain(job)
                reason = None
                if job.bad_fd is not None:
                    number = self.why_not_started(job)
                    if number is not None:
                        code = 127 if number in (errno.ENOENT, errno.ENOTDIR) else 126
                        reason = "processes" if number in (errno.EAGAIN, errno.ENOMEM) else None
                if code < 0 and job.reason is None:
                    reason = self.agent.out_of_memory(code) or "signal"
                name = errno.errorcode.get(code - 200) if job.kind == "file" and code > 200 else None
                name = "ENOENT" if job.kind == "file" and code == 127 else name
                if job.kind == "exec" and code == 127 and not job.out[1].total:
                    reason = "not_found"
                self.agent.finish(
                    job, ok=code == 0 and job.reason is None, exit=code, cpu=cpu, reason=reason, errno=name
                )
