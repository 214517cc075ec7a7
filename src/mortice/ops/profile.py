"""Times the operators of a decoder on this machine, for the cost model to calibrate on.

Needs nothing but torch and the standard library, so that it runs on a bare machine: copy this file and call
`python profile.py --device cuda --hardware h200 --out profile.json`. Each figure is the median of several timings; on
CUDA a graph of repeats is timed by events, so that Python and launches from the host are left out. Buffers rotate
through more memory than the caches hold, as weights and KV do in a model.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SCHEMA = "mortice.profile/1"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MAX_COPIES = 64
Call = Callable[[int], object]  # runs the operator on buffer number i


@dataclass(frozen=True)
class Grid:
    """Sizes to time. `quick` fits into two minutes on two CPU cores, `full` into some minutes of a GPU."""

    rows: tuple[int, ...]
    matrices: tuple[tuple[int, int], ...]  # (n, k)
    heads: tuple[tuple[int, int, int], ...]  # (query heads, KV heads, head size)
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    experts: tuple[tuple[int, int, int, int], ...]  # (hidden, expert size, experts, top k)
    tokens: tuple[int, ...]
    cache_bytes: int  # rotate through at least so much
    max_bytes: int  # skip what needs more memory


QUICK = Grid(
    rows=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    matrices=((576, 576), (1536, 576), (576, 1536), (2048, 2048), (4096, 1024), (1024, 4096)),
    heads=((9, 3, 64), (16, 8, 128), (16, 1, 128)),
    batches=(1, 4, 16),
    contexts=(256, 1024, 4096),
    prompts=(64, 128, 256, 512, 1024),
    experts=((576, 384, 16, 2),),
    tokens=(1, 2, 4, 8, 16, 64),
    cache_bytes=96 << 20,
    max_bytes=1 << 30,
)
FULL = Grid(
    rows=(1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    matrices=(
        (2048, 7168), (7168, 2048), (7168, 16384), (16384, 2048), (36864, 7168), (7168, 18432),
        (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (8192, 8192), (1024, 1024),
    ),
    heads=((32, 8, 128), (64, 8, 128), (64, 4, 128), (64, 1, 256), (8, 1, 128), (16, 16, 128)),
    batches=(1, 4, 16, 64, 128),
    contexts=(512, 2048, 8192, 32768),
    prompts=(128, 512, 2048, 8192),
    experts=((7168, 2048, 32, 8), (4096, 1536, 128, 8), (7168, 5120, 8, 3)),
    tokens=(1, 8, 64, 256, 1024, 4096),
    cache_bytes=512 << 20,
    max_bytes=24 << 30,
)  # fmt: skip
GRIDS = {"quick": QUICK, "full": FULL}


@dataclass
class Timer:
    """Median seconds of one call."""

    device: torch.device
    budget_s: float = 0.25  # of one figure, warm-up apart
    rounds: int = 5
    graphs: bool = field(init=False)

    def __post_init__(self) -> None:
        self.graphs = self.device.type == "cuda"

    def seconds(self, call: Call) -> tuple[float, int]:
        """(median seconds of a call, number of timings)."""
        with torch.inference_mode():
            return self._cuda(call) if self.graphs else self._host(call)

    def _host(self, call: Call) -> tuple[float, int]:
        call(0)
        once = _wall(lambda: call(1))
        repeats = max(1, int(self.budget_s / self.rounds / max(once, 1e-7)))
        times = []
        for turn in range(self.rounds):
            start = time.perf_counter()
            for i in range(turn * repeats, (turn + 1) * repeats):
                call(i)
            times.append((time.perf_counter() - start) / repeats)
        return statistics.median(times), self.rounds

    def _cuda(self, call: Call) -> tuple[float, int]:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for i in range(3):
                call(i)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call(3)
        torch.cuda.synchronize()
        once = time.perf_counter() - begun
        repeats = max(4, min(256, int(self.budget_s / self.rounds / max(once, 2e-6))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(repeats):
                call(i)
        times = []
        for _ in range(self.rounds + 1):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3 / repeats)
        return statistics.median(times[1:]), self.rounds


def _wall(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(
    device: str, grid: Grid, dtypes: tuple[str, ...], progress: Callable[[str, int], None] | None = None
) -> list[dict[str, Any]]:
    """Rows of all operators in all dtypes, as a profile file holds them. `progress` hears each operator as it is
    done and how many rows there are by now."""
    timer, rows = Timer(torch.device(device)), []
    for dtype in dtypes:
        for case in _cases(timer.device, grid, dtype):
            seconds, runs = timer.seconds(case.call)
            features = {name: float(value) for name, value in case.features.items()}
            rows.append(
                {
                    "operator": case.operator,
                    "variant": dtype,
                    "features": features,
                    "seconds": seconds,
                    "runs": runs,
                }
            )
            if progress is not None:
                progress(f"{case.operator} {dtype}", len(rows))
    return rows


@dataclass(frozen=True)
class Case:
    operator: str
    features: dict[str, int]
    call: Call


def _cases(device: torch.device, grid: Grid, dtype: str) -> Iterator[Case]:
    for n, k in grid.matrices:
        for m in grid.rows:
            yield _gemm(device, grid, dtype, m, n, k)
    if dtype not in DTYPES:
        return  # FP8 here is a matrix product alone
    for shape in grid.heads:
        for batch in grid.batches:
            for context in grid.contexts:
                if _kv_bytes(shape, batch * context) <= grid.max_bytes:
                    yield _decode(device, grid, dtype, shape, batch, context)
        for tokens in grid.prompts:
            yield _prefill(device, dtype, shape, tokens)
    for sizes in grid.experts:
        for tokens in grid.tokens:
            yield _experts(device, grid, dtype, sizes, tokens)


def _kv_bytes(shape: tuple[int, int, int], tokens: int) -> int:
    return 2 * tokens * shape[1] * shape[2] * 4


def _copies(grid: Grid, each_bytes: int) -> int:
    return max(1, min(MAX_COPIES, -(-grid.cache_bytes // each_bytes)))


def _gemm(device: torch.device, grid: Grid, dtype: str, m: int, n: int, k: int) -> Case:
    features = {"m": m, "n": n, "k": k}
    if dtype == "fp8":
        one = torch.ones((), device=device)
        x8 = torch.randn(max(m, 16), k, device=device).to(torch.float8_e4m3fn)
        many = [
            torch.randn(n, k, device=device).to(torch.float8_e4m3fn).t() for _ in range(_copies(grid, n * k))
        ]
        return Case(
            "gemm",
            features,
            lambda i: torch._scaled_mm(x8, many[i % len(many)], one, one, out_dtype=torch.bfloat16),
        )
    kind = DTYPES[dtype]
    x = torch.randn(m, k, device=device, dtype=kind)
    weights = [
        torch.randn(n, k, device=device, dtype=kind) for _ in range(_copies(grid, n * k * kind.itemsize))
    ]
    return Case("gemm", features, lambda i: F.linear(x, weights[i % len(weights)]))


def _decode(
    device: torch.device, grid: Grid, dtype: str, shape: tuple[int, int, int], batch: int, context: int
) -> Case:
    heads, kv_heads, dim = shape
    kind = DTYPES[dtype]
    each = 2 * batch * context * kv_heads * dim * kind.itemsize
    q = torch.randn(batch, kv_heads, heads // kv_heads, dim, device=device, dtype=kind)

    def cache() -> Tensor:
        return torch.randn(batch, kv_heads, context, dim, device=device, dtype=kind)

    pairs = [(cache(), cache()) for _ in range(_copies(grid, each))]
    features = {
        "batch": batch, "context": context, "heads": heads, "kv_heads": kv_heads, "head_dim": dim, "q_len": 1,
    }  # fmt: skip
    # The query heads that share a KV head are rows of one product, as in a decode kernel.
    return Case(
        "decode_attention",
        features,
        lambda i: F.scaled_dot_product_attention(q, pairs[i % len(pairs)][0], pairs[i % len(pairs)][1]),
    )


def _prefill(device: torch.device, dtype: str, shape: tuple[int, int, int], tokens: int) -> Case:
    heads, kv_heads, dim = shape
    q = torch.randn(1, heads, tokens, dim, device=device, dtype=DTYPES[dtype])
    k, v = (torch.randn(1, kv_heads, tokens, dim, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    features = {
        "batch": 1, "tokens": tokens, "prefix": 0, "heads": heads, "kv_heads": kv_heads, "head_dim": dim,
    }  # fmt: skip
    return Case(
        "prefill_attention",
        features,
        lambda i: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads),
    )


def _experts(
    device: torch.device, grid: Grid, dtype: str, sizes: tuple[int, int, int, int], tokens: int
) -> Case:
    """Evenly loaded experts as two batched products; those without a token are left out."""
    hidden, size, experts, top_k = sizes
    kind = DTYPES[dtype]
    touched = min(experts, max(1, round(experts * (1 - (1 - top_k / experts) ** tokens))))
    each = -(-tokens * top_k // touched)
    x = torch.randn(touched, each, hidden, device=device, dtype=kind)
    copies = _copies(grid, 3 * touched * hidden * size * kind.itemsize)
    up = [torch.randn(touched, hidden, 2 * size, device=device, dtype=kind) for _ in range(copies)]
    down = [torch.randn(touched, size, hidden, device=device, dtype=kind) for _ in range(copies)]

    def call(i: int) -> Tensor:
        gate, value = torch.bmm(x, up[i % copies]).chunk(2, dim=-1)
        return torch.bmm(F.silu(gate) * value, down[i % copies])

    features = {
        "tokens": tokens, "hidden": hidden, "size": size, "experts": experts, "top_k": top_k, "ep": 1,
    }  # fmt: skip
    return Case("experts", features, call)


def gpu_is_there() -> bool:
    return torch.cuda.is_available()


def machine(device: str) -> dict[str, Any]:
    """What the machine is, and its copy bandwidth: name, software, cores, bytes of memory, bytes/s read plus
    written."""
    timer = Timer(torch.device(device))
    size = (1 << 30) if timer.graphs else (128 << 20)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds, _ = timer.seconds(lambda i: target.copy_(source))
    if timer.graphs:
        properties = torch.cuda.get_device_properties(timer.device)
        name, cores, memory = properties.name, properties.multi_processor_count, properties.total_memory
    else:
        name, cores = platform.processor() or platform.machine(), torch.get_num_threads()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": name,
        "software": f"torch {torch.__version__}",
        "cores": cores,
        "memory_bytes": memory,
        "copy_bytes_per_s": 2 * size / seconds,
    }


def profile(
    device: str,
    hardware: str,
    grid: str,
    dtypes: tuple[str, ...],
    progress: Callable[[str, int], None] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the document of a profile file, what `machine` says)."""
    found = machine(device)
    document = {
        "schema": SCHEMA,
        "hardware": hardware,
        "device": found["device"],
        "software": found["software"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": measure(device, GRIDS[grid], dtypes, progress),
    }
    return document, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hardware", required=True, help="catalogue name that the rows calibrate")
    parser.add_argument("--grid", choices=sorted(GRIDS), default="full")
    parser.add_argument("--dtypes", default="bf16", help="comma-separated: bf16, fp32, fp8")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    document, found = profile(
        options.device, options.hardware, options.grid, tuple(options.dtypes.split(","))
    )
    with open(options.out, "w") as file:
        json.dump(document, file)
    print(json.dumps(found | {"rows": len(document["rows"])}))


if __name__ == "__main__":
    main()
