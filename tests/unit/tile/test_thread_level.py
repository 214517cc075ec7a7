"""The text of the thread level: what a lowered Hopper program looks like, and what its check refuses."""

from pathlib import Path

import numpy as np
import pytest

from mortice import tile
from mortice.tile import TileError
from mortice.tile.ir.parser import parse
from mortice.tile.ir.printer import text
from mortice.tile.passes.thread_level import check

PROGRAM = (Path(__file__).parent / "lowered_gemm.txt").read_text()


def test_a_lowered_program_prints_as_it_was_read_and_passes_its_check():
    function = parse(PROGRAM.replace("barrier(i64", "barrier(i64"))
    assert text(function) == PROGRAM.replace("barrier(i64", "barrier(i64")
    check(function)


@pytest.mark.parametrize(
    ("find", "put", "message"),
    [
        ("op.wgmma_wait(pending=0)", "op.wgmma_wait()", "wgmma_wait: its attributes"),
        ("op.wgmma_fence()", "op.wgmma_fences()", "no instruction wgmma_fences"),
        ("full[slot], 16384", "full[slot]", "barrier_expect: it has 1 operands"),
        ("warps=4, registers=232", "warps=8, registers=232", "12 warps"),
        ("registers=232", "registers=36", "36 registers"),
        ("at=65568", "at=65560", "overlap"),
        ("d[1]", "d[slot]", "indexed by what is known only at run time"),
        ("op.wgmma_fence()", "fill(tiles[0::64], 0)", "tile operator is left"),
        ("op.barrier_arrive(empty[0])", "op.barrier_arrive(tiles[0])", "is no barrier"),
    ],
)
def test_what_is_no_program_is_refused_by_name(find, put, message):
    source = PROGRAM.replace("barrier(i64", "barrier(i64").replace(find, put)
    source = source.replace("x: let(f32)", "slot: var(index) = 0\n                x: let(f32)")
    with pytest.raises(TileError, match=message):
        check(parse(source))


def test_the_experts_source_is_read_into_the_thread_level_as_it_stands():
    @tile.kernel
    def ring(X: tile.Tensor):
        for b in tile.grid(4, threads=256):
            full = tile.barrier(2, count=1)
            with tile.role("load", warps=4, registers=40):
                if tile.thread.elected():
                    tile.thread.barrier_expect(full[b % 2], 1024)
            with tile.role("use", warps=4, registers=232):
                d = tile.local((8,), tile.f32, fill=0)
                tile.thread.wgmma_fence()
                tile.thread.wgmma_wait(pending=0)
                d[0] = tile.thread.shuffle_xor(d[1], 1)
                tile.thread.ptx(d[0], text="mov.f32 %0, %0;")

    x = np.zeros(4, np.float32)
    printed = ring.ir(x)
    for line in (
        "full = barrier(i64, 2, count=1)",
        "with role('load', warps=4, registers=40):",
        "op.barrier_expect(full[(b % 2)], 1024)",
        "op.wgmma_wait(pending=0)",
        "d[0] = shuffle_xor(d[1], 1)",
        "op.ptx(d[0], text='mov.f32 %0, %0;')",
    ):
        assert line in printed
    assert printed.count("with roles():") == 1
    assert parse(printed) == ring.lowered(x)
    for target in ("c", "interpreter"):
        with pytest.raises(tile.UnsupportedError, match=f"{__file__}.*role: a CPU has no barriers"):
            ring.on(target)(x)
