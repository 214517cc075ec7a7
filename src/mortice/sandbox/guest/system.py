"""What the agent asks of the guest's kernel: limits, users, a namespace apart, randomness."""

import _signal as signal  # type: ignore[import-not-found]  # what is around it brings enum: a megabyte a process
import os
import resource


def stand_apart():
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


def limit(config):
    """Inherited by all that starts here; the number of processes counts by user, the agent's own is another."""
    for which, value in (
        (resource.RLIMIT_NPROC, config.get("processes", 64)),
        (resource.RLIMIT_AS, config.get("process_bytes", resource.RLIM_INFINITY)),
        (resource.RLIMIT_NOFILE, 1024),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (value, value))


def become_user(uid):
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    os.umask(0o022)


def oom_kills():
    """How many processes this kernel has ended because memory ran out."""
    with open("/proc/vmstat", "rb") as file:
        for line in file:
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return 0


def dup_above(fd):
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
