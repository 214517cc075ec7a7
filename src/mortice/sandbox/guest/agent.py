"""The first process of a guest: takes requests over one channel, runs them as the guest's user, remembers the results.

The channel is a pair of byte streams that carry one JSON object a line. A host that attaches anew sends `hello` with a
nonce and skips what comes before the answer; so neither side needs the other to have died between two lines. Requests
for cells and commands carry an id that runs at most once: results stay in this process's memory, which is part of every
snapshot. Guest code runs under another uid and can neither end this process nor write to its channel.
"""

import _signal as signal  # type: ignore[import-not-found]  # what is around it brings enum: a megabyte a process
import _socket
import binascii
import errno
import os
import select
import sys
import time

from mortice.sandbox.guest.cells import Cells
from mortice.sandbox.guest.children import Children
from mortice.sandbox.guest.files import copy_out, fill_from_input, listing, put, read_small, write_file
from mortice.sandbox.guest.interpreter import write_all
from mortice.sandbox.guest.jobs import HIGH_WATER, Job, b64
from mortice.sandbox.guest.results import Results, guess
from mortice.sandbox.guest.system import dup_above, limit, mix_entropy, oom_kills, stand_apart
from mortice.sandbox.guest.wire import dumps, loads

VERSION = 1
MAX_LINE = 1 << 20
STALL_S = (
    2.0  # how long a host may not read before streamed output goes uncopied (results keep head and tail)
)
MAX_JOBS = 64
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
        self.generation = ""
        self.oom_kills = oom_kills() if config.get("own_kernel") else 0
        self.env = dict(config.get("env") or {})
        self.poll = select.poll()
        self.results = Results()
        self.children = Children(self)
        self.cells = Cells(self)
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

    def run(self):
        mounting = stand_apart() if self.config.get("apart") else 0
        limit(self.config)
        if self.config.get("egress"):
            from mortice.sandbox.guest.gateway import (
                Gateway,
            )  # needs the socket module, which few sandboxes do

            self.net = Gateway(self)
        self.cells.start()
        if mounting and os.waitpid(mounting, 0)[1] != 0:
            os._exit(72)
        streams = self.children.by_fd
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
                elif fd in streams:
                    if not (choked and streams[fd].stream):
                        self.children.read(fd)
                elif self.cells.event(fd):
                    continue
                elif self.net:
                    self.net.event(fd, event)
            if self.in_fd != self.out_fd and wanted:
                self.poll.unregister(self.out_fd)
            self.children.reap()
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
        self.cells.add(job)

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
        self.children.launch(job, argv, env, request.get("cwd") or "/work")

    def op_read(self, request):
        """Small files are read here, as the user; what may block or is large by a child."""
        path, most = request["path"], request["max"]
        data = self.as_user(read_small, path, most)
        if data is not None:
            if data:
                self.send(ev="out", id=request["id"], s=1, d=b64(data))
            self.send(ev="done", id=request["id"], ok=True)
            return
        job = self.admit(request, "file")
        self.children.spawn(job, lambda: copy_out(path, most))

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
        self.children.spawn(job, lambda: write_file(path, fill_from_input))

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
        self.children.feed(job)
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
        busy = self.cells.busy()
        if busy is not None:
            self.send(ev="ack", id=request["id"], ok=False, busy=busy)
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
        self.cells.renew(request)

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
            held=len(self.results.done),
            quiet=only_interpreter and not self.jobs and not (self.net and self.net.conns),
        )  # fmt: skip

    def op_net(self, request):
        if self.net:
            self.net.from_host(request)

    # ---- from request to result

    def known(self, request):
        """A second request of one id gets the first one's result, now or when there is one."""
        name = request["id"]
        if name in self.jobs:
            return True
        result = self.results.find(name)
        if result is not None:
            self.send(ev="done", id=name, replayed=True, **result)
        return result is not None

    def admit(self, request, kind):
        if len(self.jobs) >= MAX_JOBS:
            raise RuntimeError("too many cells and commands at once (%d)" % MAX_JOBS)
        job = Job(request, kind)
        self.jobs[job.id] = job
        return job

    def finish(self, job, **result):
        del self.jobs[job.id]
        for fd in list(job.fds):
            self.children.close(fd)
        if job.stdin_fd is not None:
            self.children.close(job.stdin_fd)
        result["wall"] = round(time.monotonic() - job.started, 6)
        result["reason"] = result.get("reason") or job.reason
        if job.kind != "file":
            if not result["reason"] and not result.get("ok"):
                result["reason"] = guess(job)
            result["stdout"], result["stderr"] = job.out[1].text(), job.out[2].text()
            result["stdout_bytes"], result["stderr_bytes"] = job.out[1].total, job.out[2].total
            self.results.remember(job.id, result)
        else:
            result["stderr"] = job.out[2].text()
        self.send(ev="done", id=job.id, **result)

    def out_of_memory(self, code):
        """Whether a kernel of our own ended it for its memory since we last looked."""
        if code != -signal.SIGKILL or not self.config.get("own_kernel"):
            return None
        before, self.oom_kills = self.oom_kills, oom_kills()
        return "oom" if self.oom_kills > before else None

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

    def kill(self, job, number):
        (self.cells if job.kind == "cell" else self.children).signal(job, number)

    def check_deadlines(self):
        now = time.monotonic()
        for job in list(self.jobs.values()):
            if job.remaining is not None:
                continue
            if job.kill_at is not None and now >= job.kill_at:
                self.kill(job, signal.SIGKILL)
                job.kill_at = now + GRACE_S
            elif job.kill_at is None and now >= job.deadline:
                if self.cells.drop(job):
                    self.finish(job, ok=False, exit=None, cpu=0.0, reason="timeout")
                    continue
                job.reason = job.reason or "timeout"
                self.kill(job, signal.SIGINT if job.kind == "cell" else signal.SIGTERM)
                job.kill_at = now + GRACE_S


def main():
    config = loads(sys.argv[1])
    in_fd, out_fd = 0, 1
    if config.get("channel"):
        in_fd = out_fd = os.open(config["channel"], os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    else:
        in_fd, out_fd = dup_above(0), dup_above(1)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
    for fd in (in_fd, out_fd):
        os.set_inheritable(fd, False)
    os.environ.clear()
    Agent(config, in_fd, out_fd).run()


if __name__ == "__main__":
    main()
