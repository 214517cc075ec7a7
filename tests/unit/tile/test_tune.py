"""Tuning: the model's order, measurement, replay from a file, and words for what is wrong."""

import json

import numpy as np
import pytest

from mortice import tile
from mortice.ops.kernels.gemm import gemm_nt
from mortice.tile.diagnostics import ArgumentError
from mortice.tile.tune import H200, Schedules, candidates, search, this_cpu


@tile.kernel(choices={"BM": (8, 16), "BN": (16, 32)})
def product(A: tile.Tensor, B: tile.Tensor, *, BM: int = 16, BN: int = 16, odd: int = 0):
    M, K = A.shape
    N, K = B.shape
    assert BM != 8 or BN != 32, "these do not go together"
    C = tile.empty((M, N), tile.f32)
    for bm, bn in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, BN)):
        a, b = tile.shared((BM, 16), tile.f32), tile.shared((BN, 16), tile.f32)
        c = tile.fragment((BM, BN), tile.f32, fill=0)
        for k in range(tile.ceildiv(K, 16)):
            tile.copy(A[bm * BM :, k * 16 :], a)
            tile.copy(B[bn * BN :, k * 16 :], b)
            tile.gemm(a, b.T, c)
        tile.copy(c, C[bm * BM :, bn * BN :])
    return C


def operands(n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.standard_normal((n, n), np.float32), draw.standard_normal((n, n), np.float32)


def test_the_model_prefers_what_is_known_to_be_fast():
    specs = tile.Spec((8192, 8192), tile.bf16), tile.Spec((8192, 8192), tile.bf16)
    for machine in (H200, this_cpu()):
        ranked = candidates(gemm_nt.on("c"), specs, machine)
        tops = [x.constants for x in ranked[:6]]
        assert all(x["BM"] * x["BN"] >= 128 * 256 for x in tops), tops
        seconds = [x.prediction.seconds for x in ranked if x.prediction]
        assert seconds == sorted(seconds)
        assert all(x.prediction.bound <= x.prediction.seconds for x in ranked if x.prediction)


def test_search_measures_the_best_and_the_default_and_counts_what_cannot_be():
    done = []
    ticks = iter(range(10_000))
    found = search(
        product, operands(), this_cpu(), top=1, rounds=2, clock=lambda: float(next(ticks)),
        progress=lambda at, of: done.append((at, of)),
    )  # fmt: skip
    assert found.considered == 3
    assert [x.constants for x in found.refused] == [{"BM": 8, "BN": 32}]
    assert "these do not go together" in found.refused[0].reason
    assert {"BM": 16, "BN": 16} in [trial.constants for trial in found.trials]
    assert found.best == found.trials[0].constants
    assert done[-1] == (len(found.trials) * 3, len(found.trials) * 3)


def test_a_file_is_replayed_by_shape_and_machine(tmp_path):
    a, b = operands()
    file = tmp_path / "schedules.json"
    schedules = Schedules.read(file)
    views, _ = product.views(a, b)
    schedules.add("product", "c", "here", views, {"constants": {"BM": 8, "BN": 16}})
    schedules.write(file)
    replayed = product.replaying(Schedules.read(file).on("here"))
    assert replayed.defaults(a, b)["BM"] == 8
    assert replayed.defaults(a[:32], b)["BM"] == 16
    assert product.replaying(Schedules.read(file).on("there")).defaults(a, b)["BM"] == 16
    np.testing.assert_allclose(replayed(a, b), a @ b.T, rtol=1e-4, atol=1e-4)
    for text in (
        "[]",
        '{"version": 9, "entries": {}}',
        '{"version": 1, "entries": {"a": {"constants": {"BM": []}}}}',
    ):
        file.write_text(text)
        with pytest.raises(ArgumentError, match="holds no schedules"):
            Schedules.read(file)


def test_spaces_are_checked():
    with pytest.raises(ArgumentError, match="no constant BQ"):
        candidates(product, operands(), this_cpu(), {"BQ": (1,)})
    with pytest.raises(ArgumentError, match="cpu or choices name BX"):
        tile.kernel(choices={"BX": (1, 2)})(product.function)
    assert json.dumps([x.constants for x in candidates(product, operands(), this_cpu(), {"BM": (16, 48)})])
