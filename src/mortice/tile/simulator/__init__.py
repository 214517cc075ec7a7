"""Runs the lowered Hopper program on a CPU: warps as coroutines in random order, copies that finish when they like.

It defines what the thread level does, and objects where a card might hang, race or read what is not there yet. It must
not know frontends, passes or the CUDA text.
"""

from mortice.tile.simulator.run import Report, simulate

__all__ = ["Report", "simulate"]
