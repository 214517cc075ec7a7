"""How long a full placement table takes: every layout of one model on every hardware of the catalogue.

    .venv/bin/python benchmarks/plan_placement.py [model]

The aim is 100,000 candidates in 5 s on one core, and `import mortice.plan` in 0.3 s without torch.
"""

import subprocess
import sys
import time

from mortice.plan.placement import placement_table
from mortice.specs.catalogue import hardware_names, load_hardware, load_model


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "deepseek-v3"
    devices = [load_hardware(each) for each in hardware_names()]
    best = 1e9
    for _ in range(3):
        started = time.perf_counter()
        table = placement_table(load_model(name), devices, 8192)
        best = min(best, time.perf_counter() - started)
    imports = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "import mortice.plan, sys; assert 'torch' not in sys.modules"], check=True
        )
        imports.append(time.perf_counter() - started)
    print(
        f"{name}: {len(table):,} candidates on {len(devices)} kinds of hardware in {best:.2f} s (best of 3)"
    )
    print(f"import mortice.plan: {min(imports):.2f} s with the interpreter (best of 5)")


if __name__ == "__main__":
    main()
