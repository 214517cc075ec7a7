"""One range of block ids over several pools: our own blocks, and behind them peers' blocks where they lie.

    ids:    0 .. num_blocks           first .. first + n       ...
    memory: | own pool, writable | peer's pool, read-only | peer's pool | reserved, not mapped |

All of it is one stretch of addresses, so a block table may name blocks of any of these pools and a kernel need not know:
KV changes hands without a byte moving. Peers' pages are mapped without the right to write.
"""

import ctypes
import logging
import math
import mmap
import os
import threading
import weakref
from dataclasses import dataclass

import numpy as np

from mortice.specs.kv import PoolAddress
from mortice.transport import segment
from mortice.transport.errors import TransferError
from mortice.transport.ordering import LOADS_IN_ORDER

log = logging.getLogger(__name__)

ROOM = 16  # pools of our own size for which addresses are reserved; addresses cost nothing
_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE, _POPULATE_READ = 0, 0x10, 0x4000, 22
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@dataclass(frozen=True, slots=True)
class Window:
    """Where a peer's pool appears in this process."""

    first: int  # id here of the peer's block 0
    num_blocks: int
    generations: np.ndarray  # uint64 [num_blocks], the owner's


class AddressSpace:
    """`blocks` is uint8 [ids, block_bytes] over the whole stretch; ids that no pool stands behind must not be touched.

    Raises OSError where the addresses cannot be had.
    """

    def __init__(self, own: PoolAddress) -> None:
        page = mmap.PAGESIZE
        self._layout_digest, self._block_bytes = own.layout_digest, own.block_bytes
        self._align = page // math.gcd(page, own.block_bytes)  # blocks, so that a window starts on a page
        self._num_ids = (ROOM + 1) * (own.num_blocks + self._align)
        size = -(-self._num_ids * own.block_bytes // page) * page
        self._base = _mmap(None, size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        memory = (ctypes.c_uint8 * (self._num_ids * own.block_bytes)).from_address(self._base)
        # Unmapped when the last array that looks into it is gone, but not at exit, where threads may still look.
        weakref.finalize(memory, _libc.munmap, self._base, size).atexit = False
        self.blocks = np.ctypeslib.as_array(memory).reshape(self._num_ids, own.block_bytes)
        self._windows: dict[str, Window] = {}
        self._open(own, writable=True)

    def open(self, peer: PoolAddress) -> Window:
        """The peer's blocks, mapped if they are not yet. Raises TransferError if they cannot be."""
        if peer.pool_id not in self._windows:
            self._open(peer, writable=False)
        return self._windows[peer.pool_id]

    def close(self, pool_id: str) -> None:
        """Take a peer's blocks out of the range; the caller says that nobody reads them any more."""
        window = self._windows.pop(pool_id, None)
        if window is not None:
            self._map(window.first, window.num_blocks, _PROT_NONE, None)

    def _open(self, pool: PoolAddress, *, writable: bool) -> Window:
        if pool.layout_digest != self._layout_digest:
            raise TransferError(
                f"block layouts differ: {pool.layout_digest[:8]} there, {self._layout_digest[:8]} here"
            )
        first = self._gap(pool.num_blocks)
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        with segment.opened(pool, writable=writable) as file:
            self._map(first, pool.num_blocks, prot, file)
            window = Window(first, pool.num_blocks, file.generations())
        self._windows[pool.pool_id] = window
        return window

    def _gap(self, num_blocks: int) -> int:
        """The first id at which so many blocks find room."""
        first = 0
        for window in sorted(self._windows.values(), key=lambda w: w.first):
            if window.first - first >= num_blocks:
                break
            first = -(-(window.first + window.num_blocks) // self._align) * self._align
        if first + num_blocks > self._num_ids:
            raise TransferError("no addresses are left for another peer's pool")
        return first

    def _map(self, first: int, num_blocks: int, prot: int, file: "segment.Opened | None") -> None:
        address, size = self._base + first * self._block_bytes, num_blocks * self._block_bytes
        if file is None:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
            _mmap(address, size, prot, flags)
            return
        _mmap(address, size, prot, mmap.MAP_SHARED | _MAP_FIXED, file.fd, file.blocks_at)
        # The page table is filled beside the loop: a first touch in the middle of a step would cost it a fault a page.
        threading.Thread(target=_libc.madvise, args=(address, size, _POPULATE_READ), daemon=True).start()


def open_space(own: PoolAddress) -> AddressSpace | None:
    """Room for peers' pools behind this one, which is in shared memory; None, and a line in the log, where blocks cannot be
    read in place."""
    if not LOADS_IN_ORDER:
        log.warning("this machine reorders loads: KV of peers is copied, not read in place")
        return None
    try:
        return AddressSpace(own)
    except OSError as error:
        log.warning("no addresses for peers' KV, it will be copied (%s)", error)
        return None


def _mmap(address: int | None, size: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    at = _libc.mmap(address, size, prot, flags, fd, offset)
    if at is None or at == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap: {os.strerror(code)}")
    return int(at)
