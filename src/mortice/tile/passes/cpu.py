"""The passes of the CPU, in order."""

from mortice.tile.passes.fission import FISSION
from mortice.tile.passes.folds import FOLDS
from mortice.tile.passes.guards import GUARDS
from mortice.tile.passes.operands import operands
from mortice.tile.passes.pipeline import Pass
from mortice.tile.passes.rows import ROWS
from mortice.tile.passes.tiling import CPU, tiling
from mortice.tile.passes.unswitch import UNSWITCH


def cpu_passes(matrix_unit: bool) -> tuple[Pass, ...]:
    return (FISSION, tiling(CPU), FOLDS, ROWS, UNSWITCH, operands(matrix_unit), GUARDS)
