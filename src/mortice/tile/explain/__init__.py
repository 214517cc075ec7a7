"""Why a compiled kernel is as it is: what the passes decided about each operator, with the line it stands in, what it
needs of the machine, and what bounds it.

It must not know particular kernels.
"""

from mortice.tile.explain.note import Note
from mortice.tile.explain.report import Report, Resources, report

__all__ = ["Note", "Report", "Resources", "report"]
