"""How the CUDA benchmark measures: launches prepared beforehand, batches interleaved, and what a row says."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mortice.tile import arguments
from mortice.tile.cuda.compile import compile_function
from mortice.tile.host import bind
from mortice.tile.passes.gpu.lower import DEFAULT, Choices

BATCHES = 21
COPY_BANDWIDTH = 4.29e12  # bytes read and written a second, measured on the card
Row = dict[str, Any]


COMPILED: dict[Any, tuple[Any, Any]] = {}


def prepared(kernel: Any, *args: Any, out: Any, choices: Choices = DEFAULT, **constants: Any) -> "Prepared":
    """A launch with everything bound beforehand, so that the card's time is seen and not Python's."""
    outs = out if isinstance(out, tuple) else (out,)
    names = [name for name, p in kernel.signature.parameters.items() if p.kind is not p.KEYWORD_ONLY]
    views, scalars = {}, {}
    for name, value in zip(names, args, strict=True):
        if isinstance(value, torch.Tensor):
            views[name] = arguments.view(value)
        elif value is not None:
            scalars[name] = value
    types = tuple((name, x.shape, x.type(look_at_alignment=True)) for name, x in views.items())
    key = (kernel.function, types, tuple(scalars), choices, *constants.items())
    if key not in COMPILED:
        made = kernel.on("cuda").lowered(*args, **constants)
        COMPILED[key] = made, compile_function(made, choices)
    function, compiled = COMPILED[key]
    results = [p.buffer.name for p in function.tensors if p.result]
    views |= {name: arguments.view(x) for name, x in zip(results, outs, strict=True)}
    bound = bind(function, views, scalars)
    return Prepared(compiled, bound)


class Prepared:
    def __init__(self, compiled: Any, bound: Any) -> None:
        self.compiled, self.bound = compiled, bound

    def __call__(self) -> None:
        self.compiled(self.bound)


def timed(*candidates: Callable[[], Any]) -> list[float]:
    """Median microseconds of each, batches interleaved; through graphs, so that launches cost nothing."""
    graphs = []
    for call in candidates:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        each = time.perf_counter() - start
        repeats = max(1, min(20, int(1e-3 / max(each, 1e-6))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                call()
        graphs.append((graph, repeats))
    times: list[list[float]] = [[] for _ in candidates]
    for batch in range(BATCHES + 2):
        for i, (graph, repeats) in enumerate(graphs):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if batch >= 2:
                times[i].append(begin.elapsed_time(end) * 1e3 / repeats)
    return [statistics.median(x) for x in times]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.isnan().any():
        return math.inf
    return ((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()


def show(row: Row) -> None:
    parts = [f"{row['name']:34} {row['shape']!s:28}"]
    for key, form in (("error", "err {:.1e}"), ("ours_us", "ours {:9.1f} us"), ("theirs_us", "theirs {:9.1f} us"),
                      ("tflops", "{:6.1f} TFLOP/s"), ("ratio", "ratio {:.3f}"), ("problem", "{}")):  # fmt: skip
        if key in row:
            parts.append(form.format(row[key]))
    print("  ".join(parts) + ("" if row.get("right", True) else "   WRONG"), flush=True)


def row(
    name: str, shape: Any, wrong: float, limit: float, times: list[float] | None = None, flops: float = 0
) -> Row:
    out: Row = {"name": name, "shape": shape, "error": wrong, "right": wrong <= limit}
    if times:
        out |= {"ours_us": times[0], "theirs_us": times[1], "ratio": times[1] / times[0]}
        if flops:
            out["tflops"] = flops / times[0] / 1e6
    show(out)
    return out


def each(calls: list[Callable[[], Any]]) -> None:
    """One after the other on operands of their own, so that none finds its own in the cache."""
    for call in calls:
        call()
