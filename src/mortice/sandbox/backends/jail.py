"""Builds the walls of a `process` sandbox and becomes its first process. Run as a program, with the standard library alone.

Order matters. As the host's root: new namespaces, a root of read-only and memory-backed mounts, the old root taken away.
Then a user namespace whose ids mean nobody outside, Landlock, seccomp, and only then the guest's Python.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import socket
import struct
import sys
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
NEW_NAMESPACES = (NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_CAPBSET_DROP = 38, 22, 24
SECCOMP_MODE_FILTER = 2

# x86-64 numbers of what guest code has no business with; ENOSYS makes programs use their older ways or give up
FORBIDDEN = {
    "ptrace": 101, "syslog": 103, "personality": 135, "pivot_root": 155, "acct": 163, "settimeofday": 164, "mount": 165,
    "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169, "iopl": 172, "ioperm": 173, "init_module": 175,
    "delete_module": 176, "quotactl": 179, "lookup_dcookie": 212, "clock_settime": 227, "mbind": 237, "set_mempolicy": 238,
    "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "migrate_pages": 256, "unshare": 272,
    "move_pages": 279, "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
    "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425,
    "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431,
    "fsmount": 432, "fspick": 433, "clone3": 435, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    "memfd_secret": 447, "listmount": 458,
}  # fmt: skip
CLONE, SOCKET = 56, 41
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
AGENT_CAPABILITIES = (0, 1, 3, 5, 6, 7)  # chown, dac_override, fowner, kill, setgid, setuid


def main() -> None:
    """`jail.py JSON`: starts the guest and exits once it runs behind all walls; its pid is in the file named."""
    plan = json.loads(sys.argv[1])
    _call(libc.unshare, NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP)
    ready_r, ready_w = os.pipe()
    mapped_r, mapped_w = os.pipe()
    done_r, done_w = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            for fd in (ready_r, mapped_w, done_r):
                os.close(fd)
            os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
            _become_guest(plan, ready_w, mapped_r)
        except BaseException as error:
            os.write(done_w, f"{type(error).__name__}: {error}".encode()[:4000])
        os._exit(71)
    for fd in (ready_w, mapped_r, done_w):
        os.close(fd)
    proc = os.open(f"/proc/{child}", os.O_RDONLY | os.O_DIRECTORY)  # the child will take our root away too
    pid_file = os.open(plan["pid_file"], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for group in plan["groups"]:
        with open(f"{group}/cgroup.procs", "w") as file:
            file.write(str(child))
    os.write(mapped_w, b"0")
    os.read(ready_r, 1)
    for name in ("uid_map", "gid_map"):
        fd = os.open(name, os.O_WRONLY, dir_fd=proc)
        os.write(fd, f"0 {plan['base_uid']} 65536\n".encode())
        os.close(fd)
    os.write(mapped_w, b"1")
    problem = os.read(done_r, 4096)
    if problem:
        print(problem.decode(errors="replace"), file=sys.stderr)
        sys.exit(1)
    os.write(pid_file, str(child).encode())


def _become_guest(plan: dict[str, Any], ready_w: int, mapped_r: int) -> None:
    os.read(mapped_r, 1)  # in its control groups by now
    os.setsid()
    socket.sethostname(plan["hostname"])
    _loopback()
    _mounts(plan)
    _call(libc.unshare, NEWUSER)
    os.write(ready_w, b"1")
    os.read(mapped_r, 1)
    os.close(ready_w)
    os.close(mapped_r)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    for number in range(64):
        if number not in AGENT_CAPABILITIES and libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break
    header = struct.pack("II", 0x20080522, 0)
    mask = sum(1 << n for n in AGENT_CAPABILITIES)
    _call(libc.capset, header, struct.pack("IIIIII", mask, mask, 0, 0, 0, 0))
    _call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    landlock(plan["writable"])
    seccomp()
    os.execve("/usr/bin/python3", plan["argv"], plan["env"])


def _mounts(plan: dict[str, Any]) -> None:
    root = plan["stage"]
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount(plan["root"], root, None, MS_BIND | MS_REC)
    _mount(None, root, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    _mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=invisible")
    for hidden in ("sys", "irq", "bus", "fs"):
        _mount(f"{root}/proc/{hidden}", f"{root}/proc/{hidden}", None, MS_BIND | MS_REC)
        _mount(None, f"{root}/proc/{hidden}", None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    for hidden in ("kcore", "kallsyms", "keys", "sysrq-trigger", "timer_list", "latency_stats"):
        if os.path.exists(f"{root}/proc/{hidden}"):
            _mount("/dev/null", f"{root}/proc/{hidden}", None, MS_BIND)
    _mount("tmpfs", f"{root}/dev", "tmpfs", MS_NOSUID, "size=64k,mode=0755")
    for name in ("null", "zero", "full", "random", "urandom"):
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT | os.O_WRONLY))
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    os.mkdir(f"{root}/dev/shm")
    for name, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
    ):
        os.symlink(target, f"{root}/dev/{name}")
    for path, size, mode, uid in plan["tmpfs"]:
        options = f"size={size},nr_inodes=65536,mode={mode},uid={uid},gid={uid}"
        _mount("tmpfs", root + path, "tmpfs", MS_NOSUID | MS_NODEV, options)
    os.chdir(root)
    _call(libc.syscall, 155, b".", b".")  # pivot_root onto itself: the old root lies on top
    _call(libc.umount2, b".", 2)
    os.chdir("/")


def _loopback() -> None:
    with socket.socket() as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def landlock(writable: list[str]) -> None:
    """Writes only beneath these folders; no signals and no abstract sockets to the outside where the kernel knows how."""
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    writes = sum(1 << n for n in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    writes |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    scope = 3 if version >= 6 else 0
    attr = struct.pack("QQQ", writes, 0, scope)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call(libc.syscall, 444, attr, size, 0)
    for path in writable:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _call(libc.syscall, 445, ruleset, 1, struct.pack("=Qi", writes, fd), 0)
        os.close(fd)
    _call(libc.syscall, 446, ruleset, 0)
    os.close(ruleset)


def seccomp() -> None:
    """A filter for x86-64: what is forbidden does not exist, new namespaces are refused, sockets are of three families."""
    program: list[tuple[int, int, int, int]] = []
    load, equal, above, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    enosys, eperm, allow, kill = 0x50000 | errno.ENOSYS, 0x50000 | errno.EPERM, 0x7FFF0000, 0x80000000
    program += [
        (load, 0, 0, 4),
        (equal, 1, 0, 0xC000003E),
        (answer, 0, 0, kill),
    ]  # another architecture's numbers
    program += [(load, 0, 0, 0), (above, 0, 1, 0x40000000), (answer, 0, 0, kill)]  # x32
    for number in sorted(FORBIDDEN.values()):
        program += [(equal, 0, 1, number), (answer, 0, 0, enosys)]
    new = sum(NEW_NAMESPACES)
    program += [
        (equal, 0, 4, CLONE),
        (load, 0, 0, 16),
        (any_bit, 0, 1, new),
        (answer, 0, 0, eperm),
        (answer, 0, 0, allow),
    ]
    program += [(equal, 0, 5, SOCKET), (load, 0, 0, 16)]
    program += [(equal, 3 - n, 0, family) for n, family in enumerate(FAMILIES)]
    program += [(answer, 0, 0, 0x50000 | errno.EAFNOSUPPORT), (answer, 0, 0, allow)]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    _call(libc.prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    done = libc.mount(
        source.encode() if source else None, target.encode(), kind.encode() if kind else None,
        ctypes.c_ulong(flags), options.encode() or None,
    )  # fmt: skip
    if done != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}: {os.strerror(ctypes.get_errno())}")


def _call(function: Any, *arguments: Any) -> int:
    result = int(function(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
    return result


if __name__ == "__main__":
    main()
