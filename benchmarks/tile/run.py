"""The kernel language's figures, beside what people use today, in one run.

    python3 benchmarks/tile/run.py --device cuda --json OUT
    python3 benchmarks/tile/run.py --device cpu --json OUT [--rounds 9] [--clock wall|thread]

On a GPU every result is checked against torch before it is timed. OUT is a file, or a folder that gets tile-DEVICE.json.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

PARTS = (
    "gemm", "fp8", "blocks", "thin", "attention", "backward", "mla", "decode", "norm", "older", "cases", "launch",
    "compile",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--json", type=Path, help="file or folder for the figures")
    parser.add_argument("--only", default="", help="cuda: names of parts, by commas: " + ", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="cuda: fewer shapes")
    parser.add_argument("--rounds", type=int, default=9, help="cpu")
    parser.add_argument("--clock", choices=("wall", "thread"), default="wall", help="cpu")
    options = parser.parse_args()
    if options.device == "cpu":
        import on_cpu

        figures = on_cpu.run(options.rounds, options.clock)
    else:
        import on_cuda

        chosen = [name for name in PARTS if not options.only or name in options.only.split(",")]
        figures = on_cuda.run(chosen, options.quick)
    if options.json:
        place = options.json / f"tile-{options.device}.json" if options.json.is_dir() else options.json
        place.write_text(json.dumps(figures, indent=1))
    return 0 if all(row.get("right", True) for row in figures["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
