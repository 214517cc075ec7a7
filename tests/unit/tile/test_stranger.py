"""A kernel in a file of its own, outside any package, by somebody who has NumPy and a compiler and no torch."""

import subprocess
import sys
from pathlib import Path

FILE = """\
import sys

import numpy as np

from mortice import tile


@tile.kernel
def saxpy(X: tile.Tensor, Y: tile.Tensor, a: float, *, width: int = 64):
    (N,) = X.shape
    (N,) = Y.shape
    for b in tile.grid(tile.ceildiv(N, width)):
        for i in tile.parallel(width):
            Y[b * width + i] = a * X[b * width + i] + Y[b * width + i]


assert "torch" not in sys.modules
x = np.arange(1000, dtype=np.float32)
for target in (None, "c", "interpreter"):
    y = np.ones(1000, np.float32)
    (saxpy if target is None else saxpy.on(target))(x, y, 2.0)
    np.testing.assert_array_equal(y, 2 * x + 1)
assert "torch" not in sys.modules
print("right")
"""


def test_a_strangers_file_compiles_and_runs(tmp_path: Path):
    file = tmp_path / "stranger.py"
    file.write_text(FILE)
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path, timeout=100
    )
    assert done.stdout == "right\n", done.stderr
