"""The passes of the CPU, in order."""

from mortice.tile.passes.guards import GUARDS
from mortice.tile.passes.operands import operands
from mortice.tile.passes.pipeline import Pass


def cpu_passes(matrix_unit: bool) -> tuple[Pass, ...]:
    return (operands(matrix_unit), GUARDS)
