"""Files of the guest, read and written with the rights of its user."""

import errno
import os
import stat
import time

from mortice.sandbox.guest.interpreter import write_all
from mortice.sandbox.guest.jobs import CHUNK

MAX_LISTED = 2000  # files of a workspace that are looked at before a snapshot


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


def copy_out(path, limit):
    """A whole regular file to standard output; for a child."""
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


def fill_from_input(fd):
    """Standard input into a file; for a child."""
    while True:
        data = os.read(0, 65536)
        if not data:
            return
        write_all(fd, data)


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


def put(path, data):
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError:
        return
    write_all(fd, data)
    os.close(fd)
