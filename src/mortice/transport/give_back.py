"""Returning a pool's memory to the system while the mapping stays."""

import ctypes
import os

import numpy as np

_MADV_DONTNEED, _MADV_REMOVE = 4, 9
_libc = ctypes.CDLL(None, use_errno=True)


def give_back(blocks: np.ndarray) -> None:
    """Free the pages behind `blocks` (page-aligned); they read as zeros from now on, and come back when written.

    Shared memory is freed for every process that maps it, private memory for this one. Raises OSError.
    """
    address, size = ctypes.c_void_p(blocks.ctypes.data), ctypes.c_size_t(blocks.nbytes)
    if _libc.madvise(address, size, _MADV_REMOVE) and _libc.madvise(address, size, _MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), f"madvise: {os.strerror(ctypes.get_errno())}")
