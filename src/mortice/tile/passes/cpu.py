"""The passes of the CPU, in order."""

from mortice.tile.passes.guards import GUARDS

CPU_PASSES = (GUARDS,)
