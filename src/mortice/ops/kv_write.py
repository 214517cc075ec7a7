"""What happens to new keys and values between their projection and the paged cache."""

from torch import Tensor

from mortice.ops.compiled import kernels_for
from mortice.ops.norm import rms_norm
from mortice.ops.rope import rotate


def write(k: Tensor, v: Tensor, planes: tuple[Tensor, ...], rows: tuple[Tensor, Tensor]) -> None:
    """Copy `k` and `v` [T, G, D] to `rows` [T] int64 of the two planes [_, G * D]."""
    planes[0].index_copy_(0, rows[0], k.reshape(len(k), -1))
    planes[1].index_copy_(0, rows[1], v.reshape(len(v), -1))


def rotate_and_write(
    qkv: Tensor,
    turn: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    planes: tuple[Tensor, ...],
    rows: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm (where there are `norms` [D] of q and k) and turn the query and key heads of `qkv` [T, H + 2 G, D], which
    is used up, and write keys and values to the cache. Answers q [T, H, D], k and v [T, G, D].

    `turn`: cos and sin [T, 1, D] of a RopeTable.
    """
    dim = qkv.shape[2]
    kv_heads = planes[0].shape[1] // dim
    heads = qkv.shape[1] - 2 * kv_heads
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    compiled = kernels_for(qkv)
    same_dtype = norms is None or norms[0].dtype == qkv.dtype
    if compiled is not None and same_dtype and turn[0].dtype == qkv.dtype:
        compiled.rotate_and_write(qkv, turn, norms, eps, planes, rows)
        return q, k, v
    if norms is None:
        q, k = rotate(qkv[:, : heads + kv_heads], *turn).split([heads, kv_heads], dim=1)
    else:
        q, k = rotate(rms_norm(q, norms[0], eps), *turn), rotate(rms_norm(k, norms[1], eps), *turn)
    write(k, v, planes, rows)
    return q, k, v
