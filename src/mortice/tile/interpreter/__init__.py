"""Runs tile IR with NumPy, one block after the other, and checks what the other back ends trust: bounds, initialised
tiles, races, aliasing. It defines what a kernel means.

It must not know frontends or other back ends.
"""

from mortice.tile.interpreter.machine import interpret

__all__ = ["interpret"]
