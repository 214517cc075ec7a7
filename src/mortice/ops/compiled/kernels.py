"""The compiled kernels as functions of tensors.

All tensors are bfloat16 on the CPU and contiguous unless said otherwise; shapes are the caller's duty, since a wrong
one would read foreign memory: call these through the operators of `mortice.ops`, which know them.
"""

import ctypes
import functools

import torch
from torch import Tensor

from mortice.ops.compiled.build import Unavailable, library

GROUP = 32  # columns of a weight that share a scale, and the multiple that K must be of
PANEL = 32  # rows of a weight that lie together
RECORD_BYTES = {4: 320, 8: 544}  # of 16 rows and one group
MAX_HEAD_DIM = 512

P, L, N, F = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
SIGNATURES: dict[str, list[type]] = {
    "pack_groups": [P, P, P, P, L, L, N],
    "matmul_groups": [P, P, P, P, L, L, L, N, N],
    "add_rms_norm": [P, P, P, P, L, L, L, F, N],
    "silu_mul": [P, P, L, L, N],
    "unpack_group_rows": [P, P, P, L, L, N],
    "rotate_and_write": [P, P, P, P, P, F, P, P, P, P, L, L, L, L, N],
    "paged_attention": [P, L, P, P, L, P, L, P, P, L, L, L, L, L, L, F, N],
}
MAY_FAIL = ("matmul_groups", "paged_attention")  # for want of memory
ARCH_PRCTL, REQUEST_STATE, TILE_DATA = 158, 0x1023, 18


class Kernels:
    def __init__(self, path: str) -> None:
        """Load the library; it shares torch's OpenMP threads, since torch has loaded the same runtime before."""
        loaded = ctypes.CDLL(path)
        for name, arguments in SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes = arguments
            function.restype = N if name in MAY_FAIL else None
        self.c = loaded
        # Linux gives a process the matrix unit's registers on request only.
        ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_STATE, TILE_DATA)

    def pack_groups(self, codes: Tensor, scale: Tensor, low: Tensor, bits: int) -> Tensor:
        """`codes` [N, K] uint8 below 2^bits, `scale` and `low` [N, K / GROUP] float16: w = code * scale + low for
        4 bits, (code - 128) * scale for 8."""
        rows, columns = codes.shape
        packed = torch.empty(
            -(-rows // PANEL) * 2 * (columns // GROUP) * RECORD_BYTES[bits], dtype=torch.uint8
        )
        parts = [part.contiguous() for part in (codes, scale, low)]
        self.c.pack_groups(*(part.data_ptr() for part in parts), packed.data_ptr(), rows, columns, bits)
        return packed

    def unpack_group_rows(self, packed: Tensor, ids: Tensor, columns: int, bits: int) -> Tensor:
        """Rows `ids` [T] int64 of the weight that was packed, [T, `columns`]."""
        rows = torch.empty(len(ids), columns, dtype=torch.bfloat16)
        self.c.unpack_group_rows(packed.data_ptr(), ids.data_ptr(), rows.data_ptr(), len(ids), columns, bits)
        return rows

    def matmul_groups(self, x: Tensor, packed: Tensor, bias: Tensor | None, rows: int, bits: int) -> Tensor:
        """x W^T + bias, [M, N] for `x` [M, K] and W [N = `rows`, K] of `pack_groups`."""
        x = x.contiguous()
        y = x.new_empty(len(x), rows)
        shift = None if bias is None else bias.data_ptr()
        threads = torch.get_num_threads()
        failed = self.c.matmul_groups(
            x.data_ptr(), packed.data_ptr(), shift, y.data_ptr(), len(x), rows, x.shape[1], bits, threads
        )
        if failed:
            raise MemoryError("no memory for a product's scratch")
        return y

    def add_rms_norm(self, x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """x += added, if there is one; then norm(x) * weight, [T, D]. Rows of `x` [T, D] may lie apart."""
        out = x.new_empty(x.shape)
        more = None if added is None else added.data_ptr()
        threads = torch.get_num_threads()
        self.c.add_rms_norm(
            x.data_ptr(),
            more,
            weight.data_ptr(),
            out.data_ptr(),
            len(x),
            x.shape[1],
            x.stride(0),
            eps,
            threads,
        )
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2 D] to [T, D]."""
        rows, width = gate_up.shape
        out = gate_up.new_empty(rows, width // 2)
        self.c.silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, width // 2, torch.get_num_threads())
        return out

    def rotate_and_write(
        self,
        qkv: Tensor,
        turn: tuple[Tensor, Tensor],
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        planes: tuple[Tensor, ...],
        rows: tuple[Tensor, Tensor],
    ) -> None:
        """In place: norm (if there are weights [D] of q and k) and turn the query and key heads of `qkv` [T, H + 2 G,
        D]; then copy keys and values to `rows` of the two `planes` [_, G * D].

        `turn`: cos and sin [T, 1, D] of a RopeTable.
        """
        tokens, heads, dim = qkv.shape
        kv_heads = planes[0].shape[1] // dim
        q_norm, k_norm = (None, None) if norms is None else (norms[0].data_ptr(), norms[1].data_ptr())
        self.c.rotate_and_write(
            qkv.data_ptr(),
            turn[0].data_ptr(),
            turn[1].data_ptr(),
            q_norm,
            k_norm,
            eps,
            planes[0].data_ptr(),
            planes[1].data_ptr(),
            rows[0].data_ptr(),
            rows[1].data_ptr(),
            tokens,
            heads - 2 * kv_heads,
            kv_heads,
            dim,
            torch.get_num_threads(),
        )

    def paged_attention(
        self,
        q: Tensor,
        k_plane: Tensor,
        v_plane: Tensor,
        tables: Tensor,
        context: Tensor,
        window: int,
        scale: float,
    ) -> Tensor:
        """[n, H * D] for one query a sequence, `q` [n, H, D] whose rows may lie apart.

        Planes [blocks, block_size, G, D], blocks apart; `tables` [n, B] and `context` [n] int64; `window`: keys that
        are seen, 0 for all.
        """
        sequences, heads, dim = q.shape
        _, block_size, kv_heads, _ = k_plane.shape
        out = q.new_empty(sequences, heads * dim)
        failed = self.c.paged_attention(
            q.data_ptr(),
            q.stride(0),
            k_plane.data_ptr(),
            v_plane.data_ptr(),
            k_plane.stride(0),
            tables.data_ptr(),
            tables.shape[1],
            context.data_ptr(),
            out.data_ptr(),
            sequences,
            heads,
            kv_heads,
            dim,
            block_size,
            window,
            scale,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for attention's partial results")
        return out


@functools.cache
def load() -> Kernels | None:
    try:
        return Kernels(str(library()))
    except Unavailable:
        return None


def kernels_for(x: Tensor) -> Kernels | None:
    """The compiled kernels, if they are there and work on such tensors."""
    return load() if x.dtype is torch.bfloat16 and x.is_cpu else None
