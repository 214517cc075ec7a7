"""What this machine has and lacks for the work, and the remedy for each lack."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

import msgspec
import torch

from mortice.models import store
from mortice.models.architectures import why_not_compiled

GIB = 1 << 30


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = True  # serving cannot work without it


def check_machine() -> list[Finding]:
    return [
        _python(),
        _torch(),
        *(_package(*entry) for entry in _PACKAGES),
        _cpu(),
        _kernels(),
        _memory(),
        _shared_memory(),
        _gpu(),
        _model(),
        _open_files(),
    ]


# (distribution, what for, extra that brings it, needed)
_PACKAGES = (
    ("starlette", "the HTTP server", "serve", True),
    ("uvicorn", "the HTTP server", "serve", True),
    ("tokenizers", "text in and out", "serve", True),
    ("llguidance", "guided decoding", "serve", True),
    ("matplotlib", "plots of mortice bench", "bench", False),
    ("opentelemetry-sdk", "traces", "trace", False),
    ("nixl-cu13", "KV over RDMA and UCX", "nixl", False),
)


def _python() -> Finding:
    return Finding(
        name="python",
        ok=sys.version_info >= (3, 11),
        found=platform.python_version(),
        remedy="install Python 3.11 or later and run make setup again",
    )


def _torch() -> Finding:
    version = torch.__version__
    known = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    return Finding(
        name="torch",
        ok=(2, 11) <= known <= (2, 13),
        found=f"{version}, {torch.get_num_threads()} threads",
        remedy="pip install 'torch>=2.11,<2.14'",
    )


def _package(name: str, purpose: str, extra: str, needed: bool) -> Finding:
    try:
        found, ok = importlib.metadata.version(name), True
    except importlib.metadata.PackageNotFoundError:
        found, ok = f"not installed ({purpose})", False
    return Finding(name=name, ok=ok, found=found, remedy=f"pip install 'mortice[{extra}]'", needed=needed)


def _cpu() -> Finding:
    capability = torch.backends.cpu.get_cpu_capability()
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    extras = [name for name in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni") if name in flags]
    return Finding(
        name="cpu",
        ok="AVX512" in capability or "AVX2" in capability,
        found=f"{len(os.sched_getaffinity(0))} cores, {capability} {' '.join(extras)}".strip(),
        remedy="without AVX2 everything runs, slowly",
        needed=False,
    )


def _kernels() -> Finding:
    missing = why_not_compiled()
    return Finding(
        name="compiled kernels",
        ok=missing is None,
        found=missing or "compiled for this processor",
        remedy="torch does their work, in bfloat16 up to twice as slowly",
        needed=False,
    )


def _memory() -> Finding:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    return Finding(
        name="memory",
        ok=free > GIB,
        found=f"{free / GIB:.1f} GiB available",
        remedy="the default model with one prefill and one decode worker wants 2 GiB",
        needed=False,
    )


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    return Finding(
        name="shared memory",
        ok=free > GIB,
        found=f"{free / GIB:.1f} GiB free in /dev/shm",
        remedy="mount a larger /dev/shm (docker: --shm-size=2g), lower --kv-bytes, or use --transport tcp",
        needed=False,
    )


def _gpu() -> Finding:
    has = torch.cuda.is_available()
    return Finding(
        name="gpu",
        ok=has,
        found=torch.cuda.get_device_name() if has else "none: models run on the CPU",
        remedy="for a GPU: an NVIDIA driver and the CUDA build of torch",
        needed=False,
    )


def _model() -> Finding:
    path = store.locate("smollm2")
    return Finding(
        name="default model",
        ok=path is not None,
        found=str(path) if path else "not in the cache",
        remedy="mortice pull smollm2 (serve does it by itself)",
        needed=False,
    )


def _open_files() -> Finding:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding(
        name="open files",
        ok=soft >= 1024,
        found=f"limit {soft}",
        remedy="ulimit -n 4096: every connection is one file",
        needed=False,
    )
