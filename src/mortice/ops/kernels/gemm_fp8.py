"""Matrix products of fp8 numbers with one scale for each tensor."""

from typing import Any

from mortice import tile


@tile.kernel
def gemm_fp8_nt(
    A: tile.Tensor,
    B: tile.Tensor,
    scale: float,
    *,
    BM: int = 128,
    BN: int = 256,
    BK: int = 128,
    stages: int = 4,
) -> Any:
    """C [M, N] bf16 = scale * A [M, K] @ B [N, K]^T of e4m3 or e5m2; scale: the product of both tensors' scales."""
    M, K = A.shape
    N, K = B.shape
    C = tile.empty((M, N), tile.bf16)
    for bm, bn in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, BN), panel=8):
        a = tile.shared((BM, BK), A.dtype)
        b = tile.shared((BN, BK), B.dtype)
        c = tile.fragment((BM, BN), tile.f32, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, BK), stages=stages):
            tile.copy(A[bm * BM :, k * BK :], a)
            tile.copy(B[bn * BN :, k * BK :], b)
            tile.gemm(a, b.T, c)
        for i, j in tile.parallel(BM, BN):
            c[i, j] = c[i, j] * scale
        tile.copy(c, C[bm * BM :, bn * BN :])
    return C
