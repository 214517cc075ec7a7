"""Matrix products of fp8 numbers with a scale for each tensor, or for each block of it."""

from typing import Any

from mortice import tile


@tile.inline
def add_scaled(y: Any, part: Any, rows: Any, block: Any) -> Any:
    """y [rows, columns] += part, 128 of K, each row by its scale times the block's."""
    scale = block  # read once
    for i, j in tile.parallel(y.shape[0], y.shape[1]):
        y[i, j] = y[i, j] + part[i, j] * (rows[i] * scale)


@tile.kernel(cpu={"BM": 128, "BN": 128}, choices={"BN": (128, 256)})
def gemm_fp8(
    A: tile.Tensor,
    B: tile.Tensor,
    SA: tile.Tensor | None,
    SB: tile.Tensor | None,
    scale: float,
    *,
    BM: int = 128,
    BN: int = 0,
    stages: int = 4,
) -> Any:
    """C [M, N] bf16 = scale * (A SA) (B SB)^T of A [M, K], B [N, K], e4m3 or e5m2. scale: the product of both tensors'
    scales. With SA and SB (both or neither): a scale f32 of each 1 x 128 of A in SA [M, K / 128] and of each 128 x 128
    of B in SB [N / 128, K / 128], rounded up; each 128 of K is then promoted to f32 (DeepSeek-V3, arXiv 2412.19437,
    section 3.3). BN: 0 chooses."""
    M, K = A.shape
    N, K = B.shape
    columns = BN if BN > 0 else 256 if SA is None else 128
    if SA is not None and SB is not None:
        M, KB = SA.shape
        NB, KB = SB.shape
        assert tile.ceildiv(K, 128) == KB, "SA and SB have ceildiv(K, 128) columns"
        assert tile.ceildiv(N, 128) == NB, "SB has ceildiv(N, 128) rows"
        assert 128 % columns == 0 or columns == 256, "BN divides 128 or is 256"
    C = tile.empty((M, N), tile.bf16)
    for bm, bn in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, columns), panel=8):
        a, b = tile.shared((BM, 128), A.dtype), tile.shared((columns, 128), B.dtype)
        if SA is None or SB is None:
            c = tile.fragment((BM, columns), tile.f32, fill=0)
            for k in tile.pipelined(tile.ceildiv(K, 128), stages=stages):
                tile.copy(A[bm * BM :, k * 128 :], a)
                tile.copy(B[bn * columns :, k * 128 :], b)
                tile.gemm(a, b.T, c)
            for i, j in tile.parallel(BM, columns):
                c[i, j] = c[i, j] * scale
            tile.copy(c, C[bm * BM :, bn * columns :])
        else:
            half = min(columns, 128)
            part, rows = tile.fragment((BM, half), tile.f32), tile.fragment((BM,), tile.f32)
            left, right = (
                tile.fragment((BM, half), tile.f32, fill=0),
                tile.fragment((BM, half), tile.f32, fill=0),
            )
            for k in tile.pipelined(tile.ceildiv(K, 128), stages=stages):
                tile.copy(A[bm * BM :, k * 128 :], a)
                tile.copy(B[bn * columns :, k * 128 :], b)
                tile.copy(SA[bm * BM :, k], rows)
                tile.gemm(a, b[:half, :].T, part, clear=True)
                add_scaled(left, part, rows, SB[bn * columns // 128, k] * scale)
                if columns == 256:
                    tile.gemm(a, b[half:, :].T, part, clear=True)
                    add_scaled(right, part, rows, SB[bn * 2 + 1, k] * scale)
            tile.copy(left, C[bm * BM :, bn * columns :])
            if columns == 256:
                tile.copy(right, C[bm * BM :, bn * columns + half :])
    return C
