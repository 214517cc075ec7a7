"""What turns tile IR into IR that a back end can write down: each pass is a function from IR to IR that says what it
needs and what it leaves true, and a check of the latter.

It must not know frontends or back ends.
"""

from mortice.tile.passes.pipeline import Pass, run

__all__ = ["Pass", "run"]
