"""How long a full placement table takes: every layout of one model on every hardware of the catalogue.

    .venv/bin/python benchmarks/plan_placement.py [model]

The aim is 100,000 candidates in 5 s on one core, and `import mortice.plan` in 0.3 s without torch. Times are the
process's own (user and system), since the machine may be shared; the wall is beside them.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable

from mortice.plan.measured import MODELLED, read_measured
from mortice.plan.placement import placement_table
from mortice.specs.catalogue import hardware_names, load_hardware, load_model


def best(work: Callable[[], object], rounds: int, clock: Callable[[], float]) -> tuple[float, float]:
    """(least seconds of `clock`, least wall seconds) of some rounds."""
    own, wall = [], []
    for _ in range(rounds):
        started, began = clock(), time.perf_counter()
        work()
        own.append(clock() - started)
        wall.append(time.perf_counter() - began)
    return min(own), min(wall)


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "deepseek-v3"
    model, devices = load_model(name), [load_hardware(each) for each in hardware_names()]
    size = len(placement_table(model, devices, 8192))
    for title, measured in (("modelled", MODELLED), ("H200 measured", read_measured(None, devices))):

        def price(measured: object = measured) -> None:
            placement_table(model, devices, 8192, measured=measured)

        own, wall = best(price, 3, time.process_time)
        print(
            f"{name}, {title}: {size:,} candidates on {len(devices)} kinds of hardware in {own:.2f} s of one core "
            f"({wall:.2f} s on the wall, best of 3)"
        )
    code = "import mortice.plan, sys; assert 'torch' not in sys.modules"
    own, wall = best(lambda: subprocess.run([sys.executable, "-c", code], check=True), 5, children_s)
    bare, _ = best(lambda: subprocess.run([sys.executable, "-c", "import numpy"], check=True), 5, children_s)
    print(
        f"import mortice.plan: {own:.2f} s with the interpreter ({wall:.2f} s on the wall, best of 5); "
        f"numpy alone {bare:.2f} s"
    )


if __name__ == "__main__":
    main()
