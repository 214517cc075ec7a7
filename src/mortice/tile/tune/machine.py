"""What the model knows of a machine: rates a second of one core (a multiprocessor on a GPU), bytes, bytes a second."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """flops: of products, by element type. lanes: element-wise operations. bandwidth: of memory, of all cores together.
    cache: of one core; cache_bandwidth: between it and what is behind it, of one core. block: seconds that starting one
    costs. rows: the height to which a product's tile is rounded up. overlaps: copies of pipelined loops run beside
    products, and a product's rate hangs on no cache."""

    name: str
    cores: int
    flops: dict[str, float]
    lanes: float
    bandwidth: float
    cache: int
    cache_bandwidth: float
    block: float
    rows: int
    overlaps: bool

    def rate(self, dtype: str) -> float:
        return self.flops.get(dtype, self.flops["f32"])


H200 = Machine(  # measured ceilings of the card that docs/performance.md names: 780 TFLOP/s bf16, 1500 fp8, 4.29 TB/s
    name="H200",
    cores=132,
    flops={
        name: rate / 132
        for name, rate in {
            "bf16": 780e12, "f16": 780e12, "e4m3": 1500e12, "e5m2": 1500e12, "i8": 1500e12, "f32": 60e12,
        }.items()
    },
    lanes=128 * 1.7e9,
    bandwidth=4.29e12,
    cache=232448,
    cache_bandwidth=90e9,
    block=1e-6,
    rows=64,
    overlaps=True,
)  # fmt: skip


@functools.cache
def this_cpu() -> Machine:
    """From what the kernel of the operating system says of the processor; half of its peak, which is what packed
    micro-kernels reach here."""
    info = _cpuinfo()
    flags = info.get("flags", "").split()
    hertz = max(float(info.get("cpu MHz", "0") or 0), 2000.0) * 1e6
    lanes = 16 if "avx512f" in flags else 8 if "avx2" in flags else 4
    vectors = 0.7 * 4 * lanes * hertz
    matrix = 0.4 * 1024 * hertz if "amx_bf16" in flags else 0.8 * vectors
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        name=info.get("model name", "cpu"),
        cores=cores,
        flops={"f32": vectors, "bf16": matrix, "f16": 0.7 * vectors},
        lanes=lanes * hertz / 2,
        bandwidth=10e9 * cores,
        cache=_cache_bytes(),
        cache_bandwidth=20e9,
        block=3e-7,
        rows=16,
        overlaps=False,
    )


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return {key.strip(): value.strip() for key, value in reversed(pairs)}


def _cache_bytes() -> int:
    path = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    text = path.read_text().strip() if path.exists() else "1024K"
    return int(text.rstrip("KM")) * (1 << 20 if text.endswith("M") else 1 << 10)
