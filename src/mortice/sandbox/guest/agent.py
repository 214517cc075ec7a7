"""The first process of a guest: takes requests over one channel, runs them as the guest's user, remembers the results.

The channel is a pair of byte streams that carry one JSON object a line. A host that attaches anew sends `hello` with a
nonce and skips what comes before the answer; so neither side needs the other to have died between two lines. Requests
for cells and commands carry an id that runs at most once: results stay in this process's memory, which is part of every
snapshot. Guest code runs under another uid and can neither end this process nor write to its channel.
"""

import _posixsubprocess
import _signal as signal  # type: ignore[import-not-found]  # what is around it brings enum: a megabyte a process
import _socket
import binascii
import errno
import os
import resource
import select
import stat
import sys
import time

from mortice.sandbox.guest.interpreter import Interpreter, write_all
from mortice.sandbox.guest.jobs import CHUNK, HIGH_WATER, Job, b64
from mortice.sandbox.guest.wire import dumps, loads

VERSION = 1
MAX_LINE = 1 << 20
STALL_S = (
    2.0  # how long a host may not read before streamed output goes uncopied (results keep head and tail)
)
MAX_RESULTS = 1024
MAX_RESULT_BYTES = 16 << 20
MAX_IDS = 65536
MAX_JOBS = 64
MAX_LISTED = 2000  # files of a workspace that are looked at before a snapshot
GRACE_S = 2.0  # between the signal that asks and the one that does not


class Agent:
    """The loop and its books."""

    def __init__(self, config, in_fd, out_fd):
        self.config = config
        self.uid = config.get("uid", 1000)
        self.in_fd, self.out_fd = in_fd, out_fd
        self.inbuf = bytearray()
        self.outbuf = bytearray()
        self.stalled_since = None
        self.jobs = {}
        self.by_fd = {}
        self.by_pid = {}
        self.done = {}
        self.done_bytes = 0
        self.ids = {}
        self.queue = []  # cells that wait for the interpreter
        self.cell = None
        self.kernel = None  # (pid, control fd, result fd, stdout fd, stderr fd)
        self.kernel_buf = bytearray()
        self.generation = ""
        self.oom_kills = oom_kills() if config.get("own_kernel") else 0
        self.env = dict(config.get("env") or {})
        self.poll = select.poll()
        self.net = None
        for fd in (in_fd, out_fd):
            os.set_blocking(fd, False)
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.wake = wake_r
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        for caught in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(
                caught, lambda *_: None
            )  # not SIG_IGN: what is caught is reset in commands, what is ignored is not
        self.poll.register(self.wake, select.POLLIN)
        self.poll.register(self.in_fd, select.POLLIN)

    # ---- the loop

    def run(self):
        mounting = self.stand_apart() if self.config.get("apart") else 0
        self.limit()
        if self.config.get("egress"):
            from mortice.sandbox.guest.gateway import (
                Gateway,
            )  # needs the socket module, which few sandboxes do

            self.net = Gateway(self)
        self.start_kernel()
        if mounting and os.waitpid(mounting, 0)[1] != 0:
            os._exit(72)
        while True:
            wanted = select.POLLOUT if self.outbuf else 0
            if self.in_fd == self.out_fd:
                self.poll.modify(self.in_fd, select.POLLIN | wanted)
            elif wanted:
                self.poll.register(self.out_fd, wanted)
            choked = self.choked()
            for fd, event in self.poll.poll(self.patience(choked)):
                if fd == self.out_fd and event & (select.POLLOUT | select.POLLERR | select.POLLHUP):
                    self.flush()
                if fd == self.in_fd and event & (select.POLLIN | select.POLLHUP):
                    self.read_requests()
                elif fd == self.wake:
                    os.read(self.wake, 4096)
                elif fd in self.by_fd and not (choked and self.by_fd[fd].stream):
                    self.read_output(fd)
                elif self.kernel and fd == self.kernel[2]:
                    self.read_kernel()
                elif self.kernel and fd in self.kernel[3:] and fd not in self.by_fd:
                    self.discard(fd)
                elif self.net:
                    self.net.event(fd, event)
            if self.in_fd != self.out_fd and wanted:
                self.poll.unregister(self.out_fd)
            self.reap()
            self.check_deadlines()

    def choked(self):
        """Whether streamed output must wait for the host; a host that reads nothing for long loses the stream."""
        if len(self.outbuf) < HIGH_WATER:
            self.stalled_since = None
            return False
        now = time.monotonic()
        self.stalled_since = self.stalled_since or now
        if now - self.stalled_since > STALL_S:
            for job in self.jobs.values():
                job.stream = job.raw
        return True

    def patience(self, choked):
        times = [t for job in self.jobs.values() for t in (job.kill_at or job.deadline,)]
        if choked:
            times.append(time.monotonic() + 0.05)
        if not times:
            return None
        return max(0, min(times) - time.monotonic()) * 1000 + 1

    # ---- the channel

    def send(self, **message):
        self.outbuf += dumps(message).encode() + b"\n"
        self.flush()

    def flush(self):
        while self.outbuf:
            try:
                sent = os.write(self.out_fd, self.outbuf[:65536])
            except BlockingIOError:
                return
            except OSError:
                return
            del self.outbuf[:sent]

    def read_requests(self):
        try:
            data = os.read(self.in_fd, 65536)
        except BlockingIOError:
            return
        if not data:  # the far side of a serial port is closed: wait for the next host
            time.sleep(0.02)
            return
        self.inbuf += data
        while True:
            end = self.inbuf.find(b"\n")
            if end < 0:
                if len(self.inbuf) > MAX_LINE:
                    self.inbuf.clear()
                return
            line = bytes(self.inbuf[:end])
            del self.inbuf[: end + 1]
            if line:
                self.handle(line)

    def handle(self, line):
        try:
            request = loads(line)
            method = getattr(self, "op_" + request["op"])
        except (ValueError, TypeError, KeyError, AttributeError):
            self.send(ev="bad")
            return
        try:
            method(request)
        except Exception as error:
            self.send(ev="failed", id=request.get("id"), message="%s: %s" % (type(error).__name__, error))

    # ---- requests

    def op_hello(self, request):
        self.outbuf.clear()
        self.outbuf += b"\n"
        for job in self.jobs.values():
            job.stream = job.raw
        self.send(
            ev="hello",
            nonce=request["nonce"],
            version=VERSION,
            generation=self.generation,
            running=[j.id for j in self.jobs.values() if j.kind != "file"],
        )

    def op_ping(self, request):
        self.send(ev="ack", id=request["id"])

    def op_cell(self, request):
        if self.known(request):
            return
        job = self.admit(request, "cell")
        job.code = request["code"]
        self.queue.append(job)
        self.next_cell()

    def op_exec(self, request):
        if self.known(request):
            return
        argv = [str(a) for a in request["argv"]]
        env = self.base_env()
        env.update(request.get("env") or {})
        job = self.admit(request, "exec")
        if request.get("stdin") is not None:
            job.stdin += binascii.a2b_base64(request["stdin"])
        else:
            job.stdin_eof = True
        if request.get("eof"):
            job.stdin_eof = True

        self.launch(job, argv, env, request.get("cwd") or "/work")

    def op_read(self, request):
        """Small files are read here, as the user; what may block or is large by a child."""
        path, limit = request["path"], request["max"]
        data = self.as_user(read_small, path, limit)
        if data is not None:
            if data:
                self.send(ev="out", id=request["id"], s=1, d=b64(data))
            self.send(ev="done", id=request["id"], ok=True)
            return
        job = self.admit(request, "file")

        def body():
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(
                    errno.EISDIR if stat.S_ISDIR(info.st_mode) else errno.EINVAL, "not a regular file", path
                )
            if info.st_size > limit:
                raise OSError(errno.EFBIG, "holds %d bytes, more than %d" % (info.st_size, limit), path)
            left = limit
            while left > 0:
                data = os.read(fd, min(left, 65536))
                if not data:
                    break
                write_all(1, data)
                left -= len(data)

        self.spawn(job, body)

    def op_write(self, request):
        path = request["path"]
        if "data" in request:
            data = binascii.a2b_base64(request["data"])
            try:
                self.as_user(write_file, path, lambda fd: write_all(fd, data))
                self.send(ev="done", id=request["id"], ok=True)
            except OSError as error:
                said = "%s: %s" % (error.filename or path, error.strerror)
                self.send(
                    ev="done", id=request["id"], ok=False, stderr=said, errno=errno.errorcode.get(error.errno)
                )
            return
        job = self.admit(request, "file")
        job.stdin_eof = False

        def body():
            def fill(fd):
                while True:
                    data = os.read(0, 65536)
                    if not data:
                        return
                    write_all(fd, data)

            write_file(path, fill)

        self.spawn(job, body)

    def as_user(self, call, *arguments):
        """Do something with the rights of the guest's user; the agent does nothing else meanwhile."""
        if os.getuid() != 0:
            return call(*arguments)
        os.setegid(self.uid)
        os.seteuid(self.uid)
        try:
            return call(*arguments)
        finally:
            os.seteuid(0)
            os.setegid(0)

    def op_stdin(self, request):
        job = self.jobs.get(request["id"])
        if job is None or job.stdin_fd is None:
            if request.get("ack"):
                self.send(ev="ack", id=request["ack"], ok=False)
            return
        job.stdin += binascii.a2b_base64(request.get("data") or "")
        job.stdin_eof = job.stdin_eof or bool(request.get("eof"))
        self.feed(job)
        if request.get("ack"):
            self.send(ev="ack", id=request["ack"], ok=True)

    def op_signal(self, request):
        job = self.jobs.get(request["id"])
        number = getattr(signal, "SIG" + request["sig"])
        if job is not None:
            self.kill(job, number)
        if request.get("ack"):
            self.send(ev="ack", id=request["ack"], ok=job is not None)

    def op_quiesce(self, request):
        """Nothing of a cell may be half done in a snapshot; commands may run on."""
        if self.cell is not None or self.queue:
            self.send(
                ev="ack", id=request["id"], ok=False, busy=self.cell.id if self.cell else self.queue[0].id
            )
            return
        now = time.monotonic()
        for job in self.jobs.values():
            job.remaining = max(0.1, job.deadline - now)
        if self.net:
            self.net.drop_all()
        tree = self.as_user(listing, request["tree"]) if request.get("tree") else None
        self.send(ev="ack", id=request["id"], ok=True, tree=tree)

    def op_unquiesce(self, request):
        self.give_time_back()
        self.send(ev="ack", id=request["id"], ok=True)

    def give_time_back(self):
        """Time that passed while the machine stood still is nobody's."""
        now = time.monotonic()
        for job in self.jobs.values():
            if job.remaining is not None:
                job.deadline, job.remaining = now + job.remaining, None

    def op_renew(self, request):
        """After a restore, before user code: this instance's own clock, randomness, names."""
        self.give_time_back()
        self.generation = request["generation"]
        seed = binascii.a2b_base64(request["seed"])
        if abs(time.time() - request["now"]) > 0.5:
            try:
                time.clock_settime(time.CLOCK_REALTIME, request["now"])
            except OSError:
                pass  # the sandbox's clock is the host's
        mix_entropy(seed)
        try:
            _socket.sethostname(request["hostname"])
        except OSError:
            pass
        put("/run/machine-id", binascii.hexlify(seed[:16]) + b"\n")
        put("/run/generation", self.generation.encode() + b"\n")
        if self.net:
            self.net.drop_all()
        self.to_kernel({"op": "renew", "seed": request["seed"], "generation": self.generation})
        self.renewing = request["id"]

    def op_status(self, request):
        usage = {}
        for path in ("/work", "/tmp", "/home/user"):
            try:
                s = os.statvfs(path)
                usage[path] = [(s.f_blocks - s.f_bfree) * s.f_frsize, s.f_blocks * s.f_frsize]
            except OSError:
                pass
        processes = threads = 0
        for name in os.listdir("/proc"):
            if name.isdigit() and name != "1":
                try:
                    if os.stat("/proc/" + name).st_uid != self.uid:
                        continue  # a thread of the kernel's
                    processes += 1
                    threads += len(os.listdir("/proc/%s/task" % name))
                except OSError:
                    pass
        only_interpreter = processes == 1 and threads == 1
        self.send(
            ev="ack", id=request["id"], ok=True, disk=usage, processes=processes, running=list(self.jobs),
            held=len(self.done),
            quiet=only_interpreter and not self.jobs and not (self.net and self.net.conns),
        )  # fmt: skip

    def op_net(self, request):
        if self.net:
            self.net.from_host(request)

    # ---- running at most once

    def known(self, request):
        """A second request of one id gets the first one's result, now or when there is one."""
        name = request["id"]
        if name in self.jobs:
            return True
        if name in self.done:
            self.send(ev="done", id=name, replayed=True, **self.done[name])
            return True
        if name in self.ids:
            self.send(ev="done", id=name, replayed=True, forgotten=True)
            return True
        return False

    def admit(self, request, kind):
        if len(self.jobs) >= MAX_JOBS:
            raise RuntimeError("too many cells and commands at once (%d)" % MAX_JOBS)
        job = Job(request, kind)
        self.jobs[job.id] = job
        return job

    def finish(self, job, **result):
        del self.jobs[job.id]
        for fd in list(job.fds):
            self.close(fd)
        if job.stdin_fd is not None:
            self.close(job.stdin_fd)
        result["wall"] = round(time.monotonic() - job.started, 6)
        result["reason"] = result.get("reason") or job.reason
        if job.kind != "file":
            if not result["reason"] and not result.get("ok"):
                result["reason"] = self.guess(job)
            result["stdout"], result["stderr"] = job.out[1].text(), job.out[2].text()
            result["stdout_bytes"], result["stderr_bytes"] = job.out[1].total, job.out[2].total
            self.remember(job.id, result)
        else:
            result["stderr"] = job.out[2].text()
        self.send(ev="done", id=job.id, **result)

    def remember(self, name, result):
        self.done[name] = result
        self.ids[name] = True
        self.done_bytes += len(result["stdout"]) + len(result["stderr"])
        while len(self.done) > MAX_RESULTS or (self.done_bytes > MAX_RESULT_BYTES and len(self.done) > 1):
            old = self.done.pop(next(iter(self.done)))
            self.done_bytes -= len(old["stdout"]) + len(old["stderr"])
        while len(self.ids) > MAX_IDS:
            del self.ids[next(iter(self.ids))]

    def guess(self, job):
        """The limit that a failed run most likely met, read from what it left behind."""
        said = job.out[2].text()[-4096:]
        for path in ("/work", "/tmp", "/home/user"):
            try:
                s = os.statvfs(path)
            except OSError:
                continue
            if s.f_blocks and s.f_bfree * s.f_frsize < 65536 and "No space left on device" in said:
                return "disk"
        if (
            "Resource temporarily unavailable" in said
            or "Cannot fork" in said
            or "can't start new thread" in said
        ):
            return "processes"
        if "MemoryError" in said or "Cannot allocate memory" in said:
            return "oom"
        return None

    def out_of_memory(self, code):
        """Whether a kernel of our own ended it for its memory since we last looked."""
        if code != -signal.SIGKILL or not self.config.get("own_kernel"):
            return None
        before, self.oom_kills = self.oom_kills, oom_kills()
        return "oom" if self.oom_kills > before else None

    # ---- processes

    def base_env(self):
        env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/home/user",
            "USER": "user",
            "LANG": "C.UTF-8",
            "MALLOC_ARENA_MAX": "2",
            "OPENBLAS_NUM_THREADS": self.config.get("cpus", "1"),
            "OMP_NUM_THREADS": self.config.get("cpus", "1"),
            "TERM": "dumb",
        }
        if self.net:
            for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                env[name] = "http://127.0.0.1:3128"
        env.update(self.env)
        return env

    def stand_apart(self):
        """Guest code gets a process namespace below ours: in any /proc that it can see or mount, we are not.

        gVisor lets every user open every process's descriptors through /proc, our channel among them. The namespace's first
        process only lives, and has its children reaped by ignoring them. Returns the process that mounts the new /proc.
        """
        os.unshare(os.CLONE_NEWPID)
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.posix_spawn("/usr/bin/sleep", ["sleep", "infinity"], {})
        signal.signal(signal.SIGCHLD, before)
        argv = ["/usr/bin/mount", "-t", "proc", "-o", "nosuid,nodev,noexec", "proc", "/proc"]
        return os.posix_spawn(argv[0], argv, {"PATH": "/usr/bin"})

    def limit(self):
        """Inherited by all that starts here; the number of processes counts by user, the agent's own is another."""
        for which, value in (
            (resource.RLIMIT_NPROC, self.config.get("processes", 64)),
            (resource.RLIMIT_AS, self.config.get("process_bytes", resource.RLIM_INFINITY)),
            (resource.RLIMIT_NOFILE, 1024),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(which, (value, value))

    def become_user(self):
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.umask(0o022)

    def spawn(self, job, body):
        in_r, in_w = os.pipe2(os.O_CLOEXEC)
        out_r, out_w = os.pipe2(os.O_CLOEXEC)
        err_r, err_w = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError as error:
            for fd in (in_r, in_w, out_r, out_w, err_r, err_w):
                os.close(fd)
            self.finish(
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
                self.become_user()
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
            self.finish(job, ok=False, exit=None, cpu=0.0, reason="processes" if full else "not_found")
            return
        os.close(bad_w)
        job.bad_fd = bad_r
        self.adopt(job, pid, in_r, in_w, out_r, out_w, err_r, err_w)

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

    def read_output(self, fd):
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
            self.send(ev="out", id=job.id, s=which, d=b64(data))
        if job.out[1].total + job.out[2].total > job.limit and job.reason is None:
            job.reason = "output"
            self.kill(job, signal.SIGKILL)

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

    def discard(self, fd):
        try:
            os.read(fd, CHUNK)
        except OSError:
            pass

    def kill(self, job, number):
        pid = self.kernel[0] if job.kind == "cell" and self.kernel else job.pid
        if job.kind == "cell" and job is not self.cell:
            return
        if not pid:
            return
        try:
            if job.kind == "cell":
                os.kill(pid, number)
            else:
                os.killpg(pid, number)
        except ProcessLookupError:
            pass

    def check_deadlines(self):
        now = time.monotonic()
        for job in list(self.jobs.values()):
            if job.remaining is not None:
                continue
            if job.kill_at is not None and now >= job.kill_at:
                self.kill(job, signal.SIGKILL)
                job.kill_at = now + GRACE_S
            elif job.kill_at is None and now >= job.deadline:
                if job.kind == "cell" and job is not self.cell:
                    self.queue.remove(job)
                    self.finish(job, ok=False, exit=None, cpu=0.0, reason="timeout")
                    continue
                job.reason = job.reason or "timeout"
                self.kill(job, signal.SIGINT if job.kind == "cell" else signal.SIGTERM)
                job.kill_at = now + GRACE_S

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
            if self.kernel and pid == self.kernel[0]:
                self.kernel_died(code, cpu)
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
                    reason = self.out_of_memory(code) or "signal"
                name = errno.errorcode.get(code - 200) if job.kind == "file" and code > 200 else None
                name = "ENOENT" if job.kind == "file" and code == 127 else name
                if job.kind == "exec" and code == 127 and not job.out[1].total:
                    reason = "not_found"
                self.finish(
                    job, ok=code == 0 and job.reason is None, exit=code, cpu=cpu, reason=reason, errno=name
                )

    # ---- the interpreter

    def start_kernel(self):
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
                ends = [fcntl_dup_above(fd) for fd in ends]
                for target, fd in enumerate(ends):
                    os.dup2(fd, target, inheritable=target < 3)
                os.closerange(5, 1024)
                self.become_user()
                env = self.base_env()
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
        self.kernel = (pid, ctl_w, res_r, out_r, err_r)
        self.kernel_buf.clear()

    def to_kernel(self, message):
        write_all(self.kernel[1], dumps(message).encode() + b"\n")

    def next_cell(self):
        if self.cell is not None or not self.queue:
            return
        job = self.cell = self.queue.pop(0)
        job.started = time.monotonic()
        for fd, which in ((self.kernel[3], 1), (self.kernel[4], 2)):
            self.discard_all(fd)
            job.fds[fd] = which
            self.by_fd[fd] = job
        self.to_kernel({"op": "cell", "id": job.id, "code": job.code})

    def discard_all(self, fd):
        """Output that threads or children wrote between two cells belongs to none."""
        for _ in range(24):
            try:
                if not os.read(fd, CHUNK):
                    return
            except OSError:
                return

    def release_cell(self):
        job, self.cell = self.cell, None
        self.drain(job)
        for fd in list(job.fds):
            del self.by_fd[fd]
        job.fds.clear()
        return job

    def read_kernel(self):
        try:
            data = os.read(self.kernel[2], 65536)
        except BlockingIOError:
            return
        if not data:
            self.poll.unregister(self.kernel[2])  # its death is reaped
            return
        self.kernel_buf += data
        if len(self.kernel_buf) > 4 << 20:
            os.kill(self.kernel[0], signal.SIGKILL)
            self.kernel_buf.clear()
            return
        while True:
            end = self.kernel_buf.find(b"\n")
            if end < 0:
                return
            line = bytes(self.kernel_buf[:end])
            del self.kernel_buf[: end + 1]
            try:
                self.kernel_says(loads(line))
            except (ValueError, KeyError, TypeError):
                os.kill(self.kernel[0], signal.SIGKILL)  # guest code wrote into its own interpreter's channel
                return

    def kernel_says(self, message):
        if message["op"] == "renewed":
            self.send(ev="ack", id=self.renewing, ok=True)
            return
        if self.cell is None or message["id"] != self.cell.id:
            return
        job = self.release_cell()
        error = message.get("error")
        reason = None
        if error:
            error = {k: str(error.get(k))[:65536] for k in ("type", "message", "traceback")}
            reason = {"MemoryError": "oom", "ENOSPC": "disk", "EAGAIN": "processes"}.get(
                str(message.get("cause"))
            )
        value = message.get("value")
        value = None if value is None else str(value)[:65536]
        self.finish(
            job, ok=not error and job.reason is None, exit=1 if error else 0, cpu=float(message.get("cpu") or 0),
            value=value, error=error, reason=job.reason or reason,
        )  # fmt: skip
        self.next_cell()

    def kernel_died(self, code, cpu):
        job = self.release_cell() if self.cell is not None else None
        for fd in self.kernel[2:]:
            try:
                self.poll.unregister(fd)
            except KeyError:
                pass
        for fd in self.kernel[1:]:
            os.close(fd)
        self.start_kernel()
        if job is not None:
            self.finish(
                job, ok=False, exit=code, cpu=cpu,
                reason=job.reason or self.out_of_memory(code) or "interpreter_exit", restarted=True,
            )  # fmt: skip
        self.next_cell()


def read_small(path, limit):
    """The bytes of a small regular file outside /proc, or None: then a child has to look."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        real = os.readlink("/proc/self/fd/%d" % fd)
        if (
            not stat.S_ISREG(info.st_mode)
            or info.st_size > min(limit, CHUNK)
            or real.startswith(("/proc", "/sys"))
        ):
            return None
        return os.read(fd, CHUNK)
    except OSError:
        return None
    finally:
        os.close(fd)


def write_file(path, fill):
    """Whole or not at all, and never through a link that stands at its place."""
    part = path + ".part-%d" % time.monotonic_ns()
    os.makedirs(os.path.dirname(path) or "/", exist_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fill(fd)
        os.fsync(fd)
        os.rename(part, path)
    except BaseException:
        os.unlink(part)
        raise
    finally:
        os.close(fd)


def listing(top):
    """Every file below a folder as [path, bytes, time, inode], or None where there are too many to look at in passing."""
    found, folders, seen, letters = [], [top], 0, 0
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        for entry in entries:
            seen += 1
            letters += len(entry.path)
            if seen > MAX_LISTED or letters > MAX_LISTED * 64:
                return None
            try:
                s = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(s.st_mode):
                folders.append(entry.path)
            else:
                path = os.fsencode(entry.path).decode("utf-8", "backslashreplace")
                found.append([path, s.st_size, s.st_mtime_ns, s.st_ino])
    return found


def oom_kills():
    """How many processes this kernel has ended because memory ran out."""
    with open("/proc/vmstat", "rb") as file:
        for line in file:
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return 0


def put(path, data):
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError:
        return
    write_all(fd, data)
    os.close(fd)


def fcntl_dup_above(fd):
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD, 64)


def mix_entropy(seed):
    """Host bytes into the guest kernel's generator, credited, and a reseed at once (RNDADDENTROPY, RNDRESEEDCRNG)."""
    import fcntl
    import struct

    try:
        fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.ioctl(fd, 0x40085203, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(fd, 0x5207)
    except OSError:
        pass  # a kernel in user space draws from the host
    finally:
        os.close(fd)


def main():
    config = loads(sys.argv[1])
    in_fd, out_fd = 0, 1
    if config.get("channel"):
        in_fd = out_fd = os.open(config["channel"], os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    else:
        in_fd, out_fd = fcntl_dup_above(0), fcntl_dup_above(1)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
    for fd in (in_fd, out_fd):
        os.set_inheritable(fd, False)
    os.environ.clear()
    Agent(config, in_fd, out_fd).run()


if __name__ == "__main__":
    main()
