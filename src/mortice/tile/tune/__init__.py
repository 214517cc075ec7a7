"""Finds the constants under which a kernel is fastest: ranks all by a model of the machine, measures the best of them,
keeps the result in a file that later runs replay.

It must not know particular kernels.
"""

from mortice.tile.tune.machine import H200, Machine, this_cpu
from mortice.tile.tune.model import Prediction, predict
from mortice.tile.tune.replay import Schedules
from mortice.tile.tune.search import Candidate, Found, Trial, candidates, search

__all__ = [
    "H200", "Candidate", "Found", "Machine", "Prediction", "Schedules", "Trial", "candidates", "predict", "search",
    "this_cpu",
]  # fmt: skip
