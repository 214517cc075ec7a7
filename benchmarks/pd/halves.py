"""What every way carries of each half of the drifting traces by itself: no change of division between the halves can carry
more than the best way of each, chosen in hindsight.

    .venv/bin/python benchmarks/pd/halves.py [code conv arxiv] [--seeds 0 1]

Four instances, limits and search as in policies.py.
"""

import argparse

from policies import plan
from traffic import USUAL, goodput, phases

HALF_S, START = 270.0, 18.0
FLEETS = {
    **{f"{p}P{4 - p}D": plan(USUAL, 16, p, 4 - p) for p in (1, 2, 3)},
    **{f"{p}P{4 - p}D bent": plan(USUAL, 16, p, 4 - p, convertible=True) for p in (1, 2, 3)},
    "undivided": plan(USUAL, 16, 0, 0, 4),
    "ours": plan(USUAL, 16, 2, 2, policy="mortice", convertible=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=["code", "conv", "arxiv"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    for kind in options.kinds:
        for seed in options.seeds:
            make = phases(kind, phase_s=HALF_S)
            rates = {name: goodput(fleet, make, seed, USUAL, START) for name, fleet in FLEETS.items()}
            print(f"{kind} seed {seed}:", ", ".join(f"{n} {r:.1f}" for n, r in rates.items()), flush=True)


if __name__ == "__main__":
    main()
