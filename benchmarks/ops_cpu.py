"""Times the steps that serving is made of, model alone: decoding at several batch sizes, and a prompt.

    python benchmarks/ops_cpu.py MODEL [--threads 2] [--context 192] [--quantize none int8 int4 keep]

Each figure is the best of many runs: on a shared machine the slower ones measure the neighbours.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable

import torch

from mortice.models.causal_lm import CausalLM
from mortice.models.driver import Driver, Text
from mortice.models.load import load_model


def best_ms(run: Callable[[], object], seconds: float) -> float:
    """Milliseconds of the fastest of as many runs as fit into `seconds`, after two to warm up."""
    run()
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def decode_step(model: CausalLM, num_seqs: int, context: int) -> Callable[[], object]:
    """One token for each of `num_seqs` texts of `context` tokens; running it again rewrites the same
    token."""
    driver = Driver(model, num_seqs * (-(-context // 16) + 1))
    texts = [Text() for _ in range(num_seqs)]
    driver.step([(text, [7] * (context - 1)) for text in texts])
    step = driver.step_input([(text, [7]) for text in texts])

    def run() -> object:
        step.cache = {}
        return model.forward(step, driver.kv)

    return run


def prompt_step(model: CausalLM, length: int) -> Callable[[], object]:
    driver = Driver(model, -(-length // 16) + 1)
    step = driver.step_input([(Text(), [7] * length)])

    def run() -> object:
        step.cache = {}
        return model.forward(step, driver.kv)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=192)
    parser.add_argument("--seconds", type=float, default=2.0, help="spent on each figure")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantize", nargs="+", default=["none", "int8", "int4", "keep"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {args.dtype}, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'weights':8} {'load s':>7} {'MB read':>8} "
        f"{'M=1 ms':>7} {'M=8 ms':>7} {'M=32 ms':>8} {'prompt 128 ms':>14}"
    )
    for quantize in args.quantize:
        start = time.perf_counter()
        model = load_model(args.model, dtype=getattr(torch, args.dtype), quantize=quantize)
        loading = time.perf_counter() - start
        decode = [best_ms(decode_step(model, n, args.context), args.seconds) for n in (1, 8, 32)]
        prompt = best_ms(prompt_step(model, 128), args.seconds)
        print(
            f"{quantize:8} {loading:7.1f} {model.weight_bytes / 1e6:8.1f} "
            f"{decode[0]:7.2f} {decode[1]:7.2f} {decode[2]:8.2f} {prompt:14.2f}",
            flush=True,
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
