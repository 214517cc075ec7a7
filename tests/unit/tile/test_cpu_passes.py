"""What the passes of the CPU make of the kernels, as text that reads back."""

import pytest

from mortice import tile
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.gemm import gemm_nt
from mortice.tile.explain.cpu import explain
from mortice.tile.ir.parser import parse
from mortice.tile.ir.printer import text
from mortice.tile.passes import run
from mortice.tile.passes.cpu import cpu_passes

HEADS = tile.Spec((1, 256, 2, 64), tile.bf16)


def lowered(kernel, *arguments, matrix_unit=True):
    return run(kernel.on("c").lowered(*arguments), cpu_passes(matrix_unit))


@pytest.mark.parametrize("matrix_unit", [True, False])
def test_passes_give_ir_that_prints_and_parses(matrix_unit):
    made = lowered(attention, HEADS, HEADS, HEADS, 0.1, matrix_unit=matrix_unit)
    assert parse(text(made)) == made


def test_operands_are_packed_where_the_processor_has_a_use_for_it():
    pair = tile.Spec((64, 64), tile.bf16), tile.Spec((64, 64), tile.bf16)
    assert "panels_b_turned" in text(lowered(gemm_nt, *pair))
    assert "panels" not in text(lowered(gemm_nt, *pair, matrix_unit=False))


def test_explain_names_lines_of_the_kernel_and_its_slow_paths():
    notes = explain(attention.on("c").lowered(HEADS, HEADS, HEADS, 0.1), matrix_unit=False)
    slow = [note for note in notes if note.slow]
    assert any("no unit for bf16" in note.reason for note in slow)
    assert all("gemm" in note.source for note in slow)
