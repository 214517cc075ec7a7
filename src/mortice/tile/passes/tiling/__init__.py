"""Level 1 to level 2: a parallel loop outside a grid, which only says what is computed, becomes grids with tiles, stages
and a schedule.

Gives "tiled": no parallel loop stands outside a launch. It must not know frontends or back ends.
"""

from mortice.tile.passes.tiling.machine import CPU, GPU, Machine
from mortice.tile.passes.tiling.tiling import Decision, decisions, tiling

__all__ = ["CPU", "GPU", "Decision", "Machine", "decisions", "tiling"]
