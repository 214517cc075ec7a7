"""The kernel language's figures, beside what people use today, in one run.

    python3 benchmarks/tile/run.py --device cuda --json OUT

Every result is checked against torch before it is timed. OUT is a file, or a folder that gets tile-cuda.json.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda",), default="cuda")
    parser.add_argument("--json", type=Path, help="file or folder for the figures")
    parser.add_argument("--only", default="", help="names of parts, by commas: " + ", ".join(parts()))
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    options = parser.parse_args()
    import on_cuda

    chosen = [name for name in parts() if not options.only or name in options.only.split(",")]
    figures = on_cuda.run(chosen, options.quick)
    if options.json:
        place = options.json / "tile-cuda.json" if options.json.is_dir() else options.json
        place.write_text(json.dumps(figures, indent=1))
    return 0 if all(row.get("right", True) for row in figures["rows"]) else 1


def parts() -> tuple[str, ...]:
    return ("gemm", "fp8", "thin", "attention", "mla", "norm", "launch", "compile")


if __name__ == "__main__":
    sys.exit(main())
