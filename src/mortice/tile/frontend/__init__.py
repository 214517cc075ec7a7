"""Reads a decorated Python function and makes tile IR of it, for one signature.

It must not know passes or back ends.
"""

from mortice.tile.frontend.build import Built, build

__all__ = ["Built", "build"]
