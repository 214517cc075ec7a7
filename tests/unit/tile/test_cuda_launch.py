"""The way from a call to cuLaunchKernelEx, with a driver that only writes down what it is asked."""

import ctypes

import pytest
import torch

from mortice import tile
from mortice.tile.cuda import driver
from mortice.tile.cuda.driver import LaunchConfig


@tile.kernel
def scaled(X: tile.Tensor, W: tile.Tensor, scale: float) -> tile.Tensor:
    N, D = X.shape
    (D,) = W.shape
    Y = tile.empty((N, D), X.dtype)
    for n in tile.grid(N):
        x = tile.fragment((64,), tile.f32)
        tile.copy(X[n, :64], x)
        for d in tile.parallel(64):
            x[d] = x[d] * W[d] * scale
        tile.copy(x, Y[n, :64])
    return Y


class Recorder:
    """launches: (blocks, function, pointers and numbers of the argument block, stream)."""

    def __init__(self) -> None:
        self.launches = []
        self.loads = 0
        self.stream = 7

    def cuLaunchKernelEx(self, config, function, arguments, extra):
        config = LaunchConfig.from_address(config)
        places = (ctypes.c_void_p * 3).from_address(arguments)
        pointers = sorted(ctypes.c_uint64.from_address(place).value for place in places)
        self.launches.append((config.blocks[0], function, pointers, config.stream))
        assert config.count == 1, "the kernel waits itself for the one before"
        return 0

    def load(self, code, names, shared):
        self.loads += 1
        return [f"{name} {self.loads}" for name in names]


@pytest.fixture
def card(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(driver, "driver", lambda: recorder)
    monkeypatch.setattr(driver, "load", recorder.load)
    monkeypatch.setattr(driver, "architecture", lambda: "sm_90a")
    monkeypatch.setattr(driver, "device", lambda: 0)
    monkeypatch.setattr(driver, "attribute", lambda number, of: 132)
    monkeypatch.setattr(driver, "stream", lambda: recorder.stream)
    monkeypatch.setattr("mortice.tile.cuda.compile.cubin", lambda source, architecture: b"")
    return recorder


def test_a_call_like_one_before_takes_the_short_way_to_the_same_launch(card, monkeypatch):
    kernel = scaled.on("cuda")
    x, w, y = torch.randn(5, 64), torch.randn(64), torch.empty(5, 64)
    kernel(x, w, 2.0, out=y)
    monkeypatch.setattr(type(kernel), "_bind", lambda *_: pytest.fail("the long way"))
    again, other = torch.randn(5, 64), torch.empty(5, 64)
    kernel(x, w, 2.0, out=y)
    kernel(again, w, 3.0, out=other)
    card.stream = 8
    kernel(x, w, 2.0, out=y)
    assert card.loads == 1
    assert [launch[0] for launch in card.launches] == [5] * 4
    assert card.launches[0] == card.launches[1]
    assert card.launches[3] == (*card.launches[0][:3], 8)
    assert {again.data_ptr(), w.data_ptr(), other.data_ptr()} == set(card.launches[2][2])


def test_an_address_that_is_aligned_less_gets_other_code(card):
    kernel = scaled.on("cuda")
    store, w = torch.randn(5 * 64 + 1), torch.randn(64)
    y = torch.empty(5, 64)
    kernel(store[:-1].view(5, 64), w, 2.0, out=y)
    kernel(store[1:].view(5, 64), w, 2.0, out=y)
    kernel(store[1:].view(5, 64), w, 2.0, out=y)
    assert card.loads == 2
    assert card.launches[1] == card.launches[2]
    assert card.launches[0][1] != card.launches[1][1]


def test_a_shape_that_does_not_fit_is_refused_after_calls_that_did(card):
    kernel = scaled.on("cuda")
    x, w, y = torch.randn(5, 64), torch.randn(64), torch.empty(5, 64)
    kernel(x, w, 2.0, out=y)
    kernel(x, w, 2.0, out=y)
    with pytest.raises(tile.ArgumentError, match=r"W.shape\[0\] is 32"):
        kernel(x, w[:32].contiguous(), 2.0, out=y)
