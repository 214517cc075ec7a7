"""What the interpreter finds that a compiled kernel would do wrong in silence; and that it can print and stop."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mortice import tile


@tile.kernel
def uninitialised(X: tile.Tensor):
    for b in tile.grid(1):
        t = tile.fragment((4,), tile.f32)
        X[b] = t[2]


@tile.kernel
def outside(X: tile.Tensor, at: int):
    for b in tile.grid(1):
        t = tile.fragment((4,), tile.f32, fill=0)
        X[b] = t[at]


@tile.kernel
def two_writers(X: tile.Tensor):
    for _b in tile.grid(1):
        t = tile.fragment((4,), tile.f32, fill=0)
        for i in tile.parallel(4):
            t[i // 2] = 1.0


@tile.kernel
def neighbour(X: tile.Tensor):
    for _b in tile.grid(1):
        t = tile.fragment((4,), tile.f32, fill=0)
        for i in tile.parallel(4):
            t[i] = t[(i + 1) % 4]


@tile.kernel
def two_blocks(X: tile.Tensor):
    for b in tile.grid(2):
        X[0] = tile.f32(b)


@tile.kernel
def reads_other_block(X: tile.Tensor):
    for b in tile.grid(2):
        X[b] = X[1 - b]


@pytest.mark.parametrize(
    ("kernel", "arguments", "words"),
    [
        (uninitialised, (), "t: an element is read that was never written"),
        (outside, (4,), r"t: index \[4\] lies outside \[4\]"),
        (outside, (-1,), r"t: index \[-1\] lies outside \[4\]"),
        (two_writers, (), "two iterations write one element"),
        (neighbour, (), "one iteration (reads|writes) what another (writes|reads)"),
        (two_blocks, (), "another block wrote"),
        (reads_other_block, (), "another block wrote"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_wrong_access_is_found_with_its_place(kernel, arguments, words):
    x = np.zeros(8, np.float32)
    with pytest.raises(tile.CheckError, match=words) as caught:
        kernel.on("interpreter")(x, *arguments)
    assert str(caught.value).startswith(f"{__file__}:")


@tile.kernel
def add_one(X: tile.Tensor, Y: tile.Tensor):
    (N,) = X.shape
    (N,) = Y.shape
    for b in tile.grid(tile.ceildiv(N, 4)):
        for i in tile.parallel(4):
            Y[b * 4 + i] = X[b * 4 + i] + 1


def test_overlapping_arguments_are_refused_and_the_same_view_is_in_place():
    x = np.arange(9, dtype=np.float32)
    with pytest.raises(tile.CheckError, match="Y is written and overlaps another argument"):
        add_one.on("interpreter")(x[:-1], x[1:])
    add_one.on("interpreter")(x, x)
    np.testing.assert_array_equal(x, np.arange(9) + 1)


def test_outside_a_tensor_reads_are_zero_and_writes_are_dropped():
    @tile.kernel
    def shifted(X: tile.Tensor, Y: tile.Tensor):
        for _b in tile.grid(1):
            for i in tile.parallel(16):
                Y[i - 3] = X[i - 5] + 1

    for target in ("interpreter", "c"):
        memory = np.full(30, 7, np.float32)
        x, y = np.arange(8, dtype=np.float32) + 10, memory[10:20]
        shifted.on(target)(x, y)
        expected = [1, 1, *(np.arange(8) + 11)]
        np.testing.assert_array_equal(y, expected)
        assert (memory[:10] == 7).all()
        assert (memory[20:] == 7).all()


def test_print_and_breakpoint_work_inside_a_kernel(capsys, monkeypatch):
    @tile.kernel
    def shown(X: tile.Tensor):
        for b in tile.grid(1):
            t = tile.fragment((2,), tile.f32, fill=3)
            print("tile", t, X[b])
            breakpoint()
            tile.copy(t, X[b:])

    stops = []

    def stop():
        frame = sys._getframe(1)
        stops.append((frame.f_code.co_filename, frame.f_lineno, frame.f_globals["t"].tolist()))

    monkeypatch.setattr(sys, "breakpointhook", stop)
    shown.on("interpreter")(np.full(2, 5, np.float32))
    assert capsys.readouterr().out == "tile [3. 3.] 5.0\n"
    ((file, line, values),) = stops
    assert file == __file__
    assert "breakpoint()" in Path(file).read_text().splitlines()[line - 1]
    assert values == [3, 3]
    with pytest.raises(tile.UnsupportedError, match="interpreter"):
        shown.on("c")(np.full(2, 5, np.float32))
