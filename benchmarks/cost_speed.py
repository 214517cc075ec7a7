"""Time of a placement table (one model, every hardware, many layouts and batches) and of importing the cost room.

python benchmarks/cost_speed.py [--model deepseek-v3] [--context 8192]
"""

import argparse
import subprocess
import sys
import time

import numpy as np

from mortice.cost import Formats, Kernels, Layout, decode_step, layout_fits, max_batch
from mortice.specs.catalogue import hardware_names, load_hardware, load_model
from mortice.specs.errors import RequestError

TP, DP, PP = (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64), (1, 2, 4)
EP = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BATCH = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def table(model_name: str, context: float) -> tuple[int, int, float]:
    """(candidates priced, of them in memory, seconds)."""
    model = load_model(model_name)
    grid = [each.ravel() for each in np.meshgrid(TP, DP, PP, EP, BATCH, indexing="ij")]
    layout = Layout(tp=grid[0], dp=grid[1], pp=grid[2], ep=grid[3])
    divides = layout_fits(model, layout)
    tp, dp, pp, ep, batch = (each[divides] for each in grid)
    layout = Layout(tp=tp, dp=dp, pp=pp, ep=ep)
    priced = fit = 0
    began = time.perf_counter()
    for name in hardware_names():
        hardware = load_hardware(name)
        formats = Formats(weights="fp8" if "fp8" in hardware.peaks else "bf16")
        try:
            step = decode_step(model, Kernels(hardware), layout, batch * dp, context, formats=formats)
        except RequestError:  # a card without the arithmetic or a link wide enough
            continue
        room = np.asarray(max_batch(model, hardware, layout, context, formats))
        priced += len(np.asarray(step.total_s))
        fit += int((room >= batch * dp).sum())
    return priced, fit, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="deepseek-v3")
    parser.add_argument("--context", type=float, default=8192)
    options = parser.parse_args()
    table(options.model, options.context)
    priced, fit, seconds = table(options.model, options.context)
    print(
        f"{options.model}: {priced} candidates priced ({fit} in memory) in {seconds:.2f} s, {priced / seconds:,.0f} a second"
    )
    code = "import time; t = time.perf_counter(); import mortice.cost; print(time.perf_counter() - t)"
    took = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]
    print(f"import mortice.cost: {min(took):.3f} s at best, {max(took):.3f} s at worst of {len(took)}")


if __name__ == "__main__":
    main()
