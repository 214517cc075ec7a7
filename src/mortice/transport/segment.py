"""Files in the host's shared memory that hold a block pool: one writes them, the other maps them.

    | header, one page | generations, uint64 [num_blocks], whole pages | blocks, uint8 [num_blocks, bytes] |

The kernel keeps a file until its name is removed, whoever dies: the owner removes it when it closes, `sweep`
removes what owners left that were killed. Names are "<prefix>.<pid of the owner>.<random>".
"""

import errno
import mmap
import os
import secrets
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mortice.specs.errors import RequestError
from mortice.specs.kv import PoolAddress
from mortice.transport.errors import PeerGone, TransferError

FOLDER = Path("/dev/shm")
_MAGIC = b"MORTICEP"
_VERSION = 1
_HEADER = struct.Struct(
    "<8sQQQQ64s64s"
)  # magic, version, num_blocks, block_bytes, pid, pool id, layout digest
_CLOSED_AT = 1024  # uint64: 1 once the owner has closed the pool


@dataclass(frozen=True, slots=True)
class Segment:
    """A mapped pool. What an array looks into stays mapped for as long as the array lives."""

    path: Path
    pool_id: str
    layout_digest: str
    closed: np.ndarray  # uint64 [1]
    generations: np.ndarray  # uint64 [num_blocks]
    blocks: np.ndarray  # uint8 [num_blocks, block_bytes]


def available() -> bool:
    """Whether this host has shared memory of the kind that we map."""
    return FOLDER.is_dir() and hasattr(os, "posix_fallocate")


def host_identity() -> str:
    """Equal for two processes if and only if one can map what the other makes: one boot of one kernel, one
    mount."""
    if not available():
        return ""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{FOLDER.stat().st_dev}"


def create(prefix: str, pool_id: str, layout_digest: str, num_blocks: int, block_bytes: int) -> Segment:
    """Make a segment of zeros, all of its memory taken now. Raises RequestError if the host has too little.

    Taken now, because shared memory that runs out later kills its user with SIGBUS instead of raising an
    error.
    """
    if not available():
        raise RequestError(
            f"no shared memory at {FOLDER}: set transfer.transport to tcp", param="transfer.transport"
        )
    if not prefix or not prefix.replace("-", "").replace("_", "").isalnum():
        raise RequestError(f"{prefix!r} cannot start the name of a segment", param="prefix")
    path = FOLDER / f"{prefix}.{os.getpid()}.{secrets.token_hex(6)}"
    _, size = _sizes(num_blocks, block_bytes)
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        _reserve(fd, size)
        os.pwrite(
            fd,
            _HEADER.pack(
                _MAGIC,
                _VERSION,
                num_blocks,
                block_bytes,
                os.getpid(),
                pool_id.encode(),
                layout_digest.encode(),
            ),
            0,
        )
        return _map(fd, path, pool_id, layout_digest, num_blocks, block_bytes, writable=True)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Opened:
    """A peer's segment, checked against the address it goes by, while its file is open."""

    fd: int
    name: str
    address: PoolAddress

    @property
    def blocks_at(self) -> int:
        """Where in the file the blocks start: a multiple of the page size."""
        return _sizes(self.address.num_blocks, self.address.block_bytes)[0]

    def generations(self) -> np.ndarray:
        """uint64 [num_blocks], a mapping of its own, read-only."""
        memory = mmap.mmap(self.fd, self.blocks_at, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        return np.frombuffer(memory, np.uint64, self.address.num_blocks, mmap.PAGESIZE)


@contextmanager
def opened(address: PoolAddress, *, writable: bool) -> Iterator[Opened]:
    """Open the segment of an address. Raises PeerGone if it is not there any more, TransferError if it is no pool or
    another pool stands in its place."""
    name = address.shm_name
    fd = _open(name, writable=writable)
    try:
        pool_id, digest, num_blocks, block_bytes = _identify(fd, name)
        if pool_id != address.pool_id:
            raise TransferError(f"{name} holds another pool: its owner was restarted")
        if (digest, num_blocks, block_bytes) != (
            address.layout_digest,
            address.num_blocks,
            address.block_bytes,
        ):
            raise TransferError(f"{name} has not the layout of its address")
        yield Opened(fd, name, address)
    except (OSError, ValueError) as error:
        raise TransferError(f"cannot map {name}: {error}") from error
    finally:
        os.close(fd)


def attach(address: PoolAddress, *, writable: bool) -> Segment:
    """Map a peer's segment. Raises as `opened` does."""
    with opened(address, writable=writable) as found:
        return _map(
            found.fd,
            FOLDER / found.name,
            address.pool_id,
            address.layout_digest,
            address.num_blocks,
            address.block_bytes,
            writable=writable,
        )


def identify(name: str) -> str:
    """Pool id of the segment of this name, without mapping it. Raises as `opened` does."""
    fd = _open(name, writable=False)
    try:
        return _identify(fd, name)[0]
    finally:
        os.close(fd)


def sweep(prefix: str, live_pids: Collection[int]) -> list[str]:
    """Remove the segments of this prefix whose owner is not among `live_pids`; returns their names.

    The prefix must be of one cluster: the owner's pid is all that tells its segments apart.
    """
    if not available():
        return []
    swept = []
    for path in FOLDER.glob(f"{prefix}.*.*"):
        pid = path.name[len(prefix) + 1 :].split(".")[0]
        if pid.isdigit() and int(pid) not in live_pids:
            path.unlink(missing_ok=True)
            swept.append(path.name)
    return sorted(swept)


def _open(name: str, *, writable: bool) -> int:
    if not name or "/" in name or name.startswith("."):
        raise TransferError(f"{name!r} is not the name of a segment")
    try:
        return os.open(FOLDER / name, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (OSError, ValueError) as error:
        raise PeerGone(f"cannot open shared memory {name}: {error}") from error


def _identify(fd: int, name: str) -> tuple[str, str, int, int]:
    """(pool id, layout digest, num_blocks, block_bytes) as the header has them."""
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        raise TransferError(f"{name} is not a block pool")
    magic, version, num_blocks, block_bytes, _, pool_id, digest = _HEADER.unpack(header)
    if magic != _MAGIC or version != _VERSION:
        raise TransferError(f"{name} is not a block pool of version {_VERSION}")
    if os.fstat(fd).st_size != _sizes(num_blocks, block_bytes)[1]:
        raise TransferError(f"{name} has not the size that its header tells")
    return pool_id.rstrip(b"\0").decode(), digest.rstrip(b"\0").decode(), num_blocks, block_bytes


def _sizes(num_blocks: int, block_bytes: int) -> tuple[int, int]:
    """(offset of the blocks, size of the file)."""
    page = mmap.PAGESIZE
    offset = page + -(-num_blocks * 8 // page) * page
    return offset, offset + num_blocks * block_bytes


def _reserve(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise
        free = os.statvfs(FOLDER)
        raise RequestError(
            f"the block pool needs {size / 2**30:.2f} GiB of shared memory, {FOLDER} has "
            f"{free.f_bavail * free.f_frsize / 2**30:.2f} GiB left: lower limits.kv_bytes, enlarge {FOLDER} "
            "(docker: --shm-size) or set transfer.transport to tcp",
            param="limits.kv_bytes",
        ) from error


def _map(
    fd: int,
    path: Path,
    pool_id: str,
    layout_digest: str,
    num_blocks: int,
    block_bytes: int,
    *,
    writable: bool,
) -> Segment:
    offset, size = _sizes(num_blocks, block_bytes)
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    # MAP_POPULATE: page faults now, once, instead of in the middle of the first transfers.
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    head = mmap.mmap(fd, offset, flags=flags, prot=prot)
    body = mmap.mmap(fd, size - offset, flags=flags, prot=prot, offset=offset)
    return Segment(
        path=path,
        pool_id=pool_id,
        layout_digest=layout_digest,
        closed=np.frombuffer(head, np.uint64, 1, _CLOSED_AT),
        generations=np.frombuffer(head, np.uint64, num_blocks, mmap.PAGESIZE),
        blocks=np.frombuffer(body, np.uint8).reshape(num_blocks, block_bytes),
    )
