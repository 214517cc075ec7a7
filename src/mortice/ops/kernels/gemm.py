"""Matrix products."""

from typing import Any

from mortice import tile


@tile.kernel
def gemm_nt(
    A: tile.Tensor, B: tile.Tensor, *, BM: int = 128, BN: int = 256, BK: int = 64, stages: int = 4
) -> Any:
    """C [M, N] = A [M, K] @ B [N, K]^T, accumulated in f32, C of A's type."""
    M, K = A.shape
    N, K = B.shape
    C = tile.empty((M, N), A.dtype)
    for bm, bn in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, BN), panel=8):
        a = tile.shared((BM, BK), A.dtype)
        b = tile.shared((BN, BK), B.dtype)
        c = tile.fragment((BM, BN), tile.f32, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, BK), stages=stages):
            tile.copy(A[bm * BM :, k * BK :], a)
            tile.copy(B[bn * BN :, k * BK :], b)
            tile.gemm(a, b.T, c)
        tile.copy(c, C[bm * BM :, bn * BN :])
    return C
