"""Kernels of the language on a GPU against torch: what `tests/parity/tile` checks in the simulator, at full size."""

import math

import pytest
import torch

from mortice import tile
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.gemm_fp8 import gemm_fp8
from mortice.ops.kernels.norm import rms_norm

hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = pytest.mark.skipif(not hopper, reason="needs a Hopper GPU")


def error(found, expected):
    assert not found.isnan().any()
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(
    "shape", [(128, 256, 64), (100, 72, 40), (4097, 520, 4104), (63, 65, 127), (7, 9, 4103)]
)
def test_gemm(shape):
    m, n, k = shape
    a, b = (torch.randn(x, k, device="cuda", dtype=torch.bfloat16) for x in (m, n))
    out = torch.full((m, n), math.nan, device="cuda", dtype=torch.bfloat16)
    gemm_nt(a, b, out=out)
    assert error(out, a.double() @ b.double().T) <= 5e-3
    again = gemm_nt(a, b)
    assert torch.equal(out, again)


def test_gemm_fp8():
    a, b = (torch.randn(x, 1040, device="cuda").to(torch.float8_e4m3fn) for x in (300, 500))
    assert error(gemm_fp8(a, b, None, None, 0.5), a.double() @ b.double().T * 0.5) <= 1e-2


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(1, 128, 128, 1, 1), (2, 200, 333, 4, 2), (1, 300, 100, 2, 2)])
def test_attention(shape, causal):
    batch, queries, keys, heads, groups = shape
    q = torch.randn(batch, queries, heads, 128, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(batch, keys, groups, 128, device="cuda", dtype=torch.bfloat16) for _ in "kv")
    out, sums = attention(q, k, v, 0.1, causal=causal)
    wide = [x.double().repeat_interleave(heads // groups, 2) for x in (k, v)]
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), wide[0]) * 0.1
    if causal:
        late = torch.ones(queries, keys, device="cuda", dtype=torch.bool).triu(1 + keys - queries)
        scores = scores.masked_fill(late, -math.inf)
    assert error(out, torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1).nan_to_num(0), wide[1])) <= 8e-3
    alive = scores.logsumexp(-1) > -math.inf
    assert (sums[alive] - scores.logsumexp(-1)[alive]).abs().max() <= 1e-3


@pytest.mark.parametrize("shape", [(100, 4096), (33, 100), (7, 65)])
def test_rms_norm(shape):
    x = torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(shape[1], device="cuda", dtype=torch.bfloat16)
    expected = torch.nn.functional.rms_norm(x.double(), shape[1:], w.double(), 1e-5)
    assert error(rms_norm(x, w, 1e-5), expected) <= 5e-3


@tile.kernel
def ranks(X: tile.Tensor) -> None:
    (N,) = X.shape
    for b in tile.grid(N, threads=32, cluster=2):
        tile.thread.cluster_sync()
        if tile.thread.thread() == 0:
            X[b] = tile.thread.cluster_rank()


def test_clusters():
    found = torch.full((8,), -1, dtype=torch.int32, device="cuda")
    ranks(found)
    assert found.tolist() == [0, 1] * 4
    with pytest.raises(tile.TileError, match="a cluster 2"):
        ranks(found[:7])
