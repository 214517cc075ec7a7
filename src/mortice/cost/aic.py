"""Imports measured tables of the `aiconfigurator-core` wheel (Apache-2.0), which a user installs; none are shipped here.

Layout of the wheel: systems/data/SYSTEM/OPERATOR/FRAMEWORK/VERSION/TABLE.parquet, latency in milliseconds. The newest
version of each table is read. Reading needs pyarrow, which the wheel itself depends on.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mortice.cost.collective_fit import TRAFFIC, CollectiveFit, fit_collective
from mortice.cost.profile_table import ProfileTable
from mortice.specs.errors import NotFound, RequestError

SYSTEMS = {
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "b300": "b300_sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "a100": "a100_sxm",
    "l40s": "l40s",
}
FRAMEWORKS = ("trtllm", "sglang", "vllm")
DTYPES = {
    "bfloat16": "bf16",
    "float16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "w4a16_mxfp4": "mxfp4",
    "int4_wo": "int4",
}
Columns = dict[str, NDArray[Any]]


def wheel_folder(folder: Path | None = None) -> Path:
    """The folder `systems` of the wheel: of the installed package, or inside an unpacked one."""
    if folder is None:
        found = importlib.util.find_spec("aiconfigurator_core")
        if found is None or not found.submodule_search_locations:
            raise NotFound(
                "aiconfigurator-core is not installed: pip install aiconfigurator-core, or name its folder",
                param="folder",
            )
        folder = Path(found.submodule_search_locations[0])
    for each in (folder / "systems", folder / "aiconfigurator_core" / "systems", folder):
        if (each / "data").is_dir():
            return each
    raise NotFound(f"{folder} holds no systems/data of aiconfigurator-core", param="folder")


def import_tables(
    hardware: str, framework: str, folder: Path | None = None, distribution: str = "balanced"
) -> list[ProfileTable]:
    """All operator tables of a system as one framework measured them. Raises RequestError for a system or framework
    that the wheel does not have. `distribution` is the expert load of the MoE rows."""
    if hardware not in SYSTEMS:
        raise NotFound(
            f"aiconfigurator has no tables of {hardware}; it has {', '.join(SYSTEMS)}", param="hardware"
        )
    if framework not in FRAMEWORKS:
        raise NotFound(f"framework {framework!r}: known are {', '.join(FRAMEWORKS)}", param="framework")
    base = wheel_folder(folder) / "data" / SYSTEMS[hardware]
    tables: list[ProfileTable] = []
    for name, reader in READERS.items():
        path = newest(base, name, framework)
        if path is None:
            continue
        columns = read_parquet(path)
        source = f"aiconfigurator-core, {framework} {path.parent.name}"
        if name == "moe_perf":
            columns = _where(columns, columns["distribution"] == distribution)
        tables += reader(columns, hardware, source)
    if not tables:
        raise NotFound(f"no tables of {framework} on {hardware} under {base}", param="framework")
    return tables


def copied_tables(hardware: str, folder: Path | None = None) -> dict[str, list[str]]:
    """Tables of a system whose numbers another system has too, to the last digit: file under the system -> the others.

    Two machines never measure alike, so one of them was copied and neither is evidence (the wheel's H100 and H200
    multi-node DeepEP tables are such).
    """
    data = wheel_folder(folder) / "data"
    mine = data / SYSTEMS[hardware]
    copies: dict[str, list[str]] = {}
    for path in sorted(mine.rglob("*.parquet")):
        name = str(path.relative_to(mine))
        others = [data / system / name for system in SYSTEMS.values() if system != mine.name]
        there = [other for other in others if other.is_file() and _rows(other) == _rows(path) > 0]
        same = [other for other in there if _numbers(other) == _numbers(path)]
        if same:
            copies[name] = [str(other.relative_to(data)).split("/")[0] for other in same]
    return copies


def _rows(path: Path) -> int:
    """Rows of a table; 0 for a file that is none (the wheel has placeholders)."""
    import pyarrow.parquet as parquet  # optional, see `read_parquet`

    try:
        return int(parquet.read_metadata(path).num_rows)
    except ValueError:
        return 0


def _numbers(path: Path) -> bytes:
    columns = read_parquet(path)
    kept = [
        np.ascontiguousarray(columns[name]) for name in sorted(columns) if columns[name].dtype.kind in "if"
    ]
    return b"".join(column.tobytes() for column in kept)


def newest(base: Path, table: str, framework: str) -> Path | None:
    """The file of that table with the highest version, or None."""
    found = list(base.glob(f"*/{framework}/*/{table}.parquet"))
    return max(found, key=lambda path: version_key(path.parent.name), default=None)


def version_key(version: str) -> tuple[int, ...]:
    """Release order: 1.3.0rc20 after 1.3.0rc5, 0.24.0 after 0.9.1."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def read_parquet(path: Path) -> Columns:
    try:
        import pyarrow.parquet as parquet  # optional: only whoever imports these tables needs it
    except ImportError as error:
        raise RequestError(
            "reading these tables needs pyarrow: pip install pyarrow", param="folder"
        ) from error
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path}: {error}", param="folder") from error
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def _where(columns: Columns, rows: NDArray[Any]) -> Columns:
    return {name: column[rows] for name, column in columns.items()}


def _variants(columns: Columns, field: str) -> list[tuple[str, Columns]]:
    """Rows by dtype, for the dtypes that the kernel model prices."""
    names = {str(each) for each in np.unique(columns[field].astype(str))}
    return [(DTYPES[n], _where(columns, columns[field] == n)) for n in sorted(names) if n in DTYPES]


def _table(
    operator: str, variant: str, hardware: str, source: str, columns: Columns, **features: Any
) -> ProfileTable:
    """Rows with the same sizes (several kernels measured) keep the fastest: an engine picks it."""
    seconds = columns["latency"].astype(float) * 1e-3
    matrix = np.stack(
        [np.broadcast_to(np.asarray(v, float), seconds.shape) for v in features.values()], axis=1
    )
    order = np.lexsort((seconds, *matrix.T))
    matrix, seconds = matrix[order], seconds[order]
    first = np.ones(len(seconds), dtype=bool)
    first[1:] = (matrix[1:] != matrix[:-1]).any(axis=1)
    kept = {name: matrix[first, i] for i, name in enumerate(features)}
    return ProfileTable(
        hardware=hardware,
        operator=operator,
        variant=variant,
        features=kept,
        seconds=seconds[first],
        source=source,
    )


def _gemm(columns: Columns, hardware: str, source: str) -> list[ProfileTable]:
    return [
        _table("gemm", variant, hardware, source, c, m=c["m"], n=c["n"], k=c["k"])
        for variant, c in _variants(columns, "gemm_dtype")
    ]


def _decode(columns: Columns, hardware: str, source: str) -> list[ProfileTable]:
    columns = _where(columns, (columns["window_size"] == 0) & (columns["beam_width"] == 1))
    return [
        _table(
            "decode_attention",
            variant,
            hardware,
            source,
            c,
            batch=c["batch_size"],
            context=c["isl"] + c["step"],
            heads=c["num_heads"],
            kv_heads=_kv_heads(c),
            head_dim=c["head_dim"],
            q_len=1,
        )
        for variant, c in _variants(columns, "kv_cache_dtype")
    ]


def _kv_heads(columns: Columns) -> NDArray[Any]:
    """Zero stands for as many as there are query heads."""
    kv_heads = columns["num_key_value_heads"]
    return np.where(kv_heads == 0, columns["num_heads"], kv_heads)


def _prefill(columns: Columns, hardware: str, source: str) -> list[ProfileTable]:
    columns = _where(
        columns, (columns["window_size"] == 0) & (columns["kv_cache_dtype"] == columns["attn_dtype"])
    )
    return [
        _table(
            "prefill_attention",
            variant,
            hardware,
            source,
            c,
            batch=c["batch_size"],
            tokens=c["isl"],
            prefix=c["step"],
            heads=c["num_heads"],
            kv_heads=_kv_heads(c),
            head_dim=c["head_dim"],
        )
        for variant, c in _variants(columns, "attn_dtype")
    ]


def _mla_decode(columns: Columns, hardware: str, source: str) -> list[ProfileTable]:
    return [
        _table(
            "decode_mla",
            variant,
            hardware,
            source,
            c,
            batch=c["batch_size"],
            context=c["isl"] + c["step"],
            heads=c["num_heads"],
            kv_heads=1,
            head_dim=576,
            q_len=1,
        )
        for variant, c in _variants(columns, "kv_cache_dtype")
    ]


def _mla_prefill(columns: Columns, hardware: str, source: str) -> list[ProfileTable]:
    return [
        _table(
            "prefill_mla",
            variant,
            hardware,
            source,
            c,
            batch=c["batch_size"],
            tokens=c["isl"],
            prefix=c["step"],
            heads=c["num_heads"],
            kv_heads=c["num_heads"],
            head_dim=192,
        )
        for variant, c in _variants(columns, "kv_cache_dtype")
    ]


def _moe(columns: Columns, hardware: str, source: str) -> list[ProfileTable]:
    return [
        _table(
            "experts",
            variant,
            hardware,
            source,
            c,
            tokens=c["num_tokens"],
            hidden=c["hidden_size"],
            size=c["inter_size"] / c["moe_tp_size"],
            experts=c["num_experts"],
            top_k=c["topk"],
            ep=c["moe_ep_size"],
        )
        for variant, c in _variants(columns, "moe_dtype")
    ]


READERS = {
    "gemm_perf": _gemm,
    "generation_attention_perf": _decode,
    "context_attention_perf": _prefill,
    "generation_mla_perf": _mla_decode,
    "context_mla_perf": _mla_prefill,
    "moe_perf": _moe,
}


def import_collectives(hardware: str, folder: Path | None = None) -> list[CollectiveFit]:
    """NCCL collectives of a system as fits; the table's message size counts 16-bit elements."""
    if hardware not in SYSTEMS:
        raise NotFound(
            f"aiconfigurator has no tables of {hardware}; it has {', '.join(SYSTEMS)}", param="hardware"
        )
    base = wheel_folder(folder) / "data" / SYSTEMS[hardware] / "comm" / "nccl"
    path = max(base.glob("*/nccl_perf.parquet"), key=lambda each: version_key(each.parent.name), default=None)
    if path is None:
        raise NotFound(f"no NCCL table of {hardware} under {base}", param="hardware")
    columns = read_parquet(path)
    columns = _where(columns, (columns["nccl_dtype"] == "half") & (columns["latency"] > 0))
    fits = []
    for operator in sorted(set(columns["op_name"]) & set(TRAFFIC)):
        for ranks in sorted(set(columns["num_gpus"])):
            rows = _where(columns, (columns["op_name"] == operator) & (columns["num_gpus"] == ranks))
            if len(rows["latency"]) < 4 or ranks < 2:
                continue
            moved = 2.0 * rows["message_size"].astype(float)
            fits.append(
                fit_collective(str(operator), int(ranks), moved, rows["latency"].astype(float) * 1e-3)
            )
    return fits
