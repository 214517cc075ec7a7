"""Measured operators as columns: what `mortice plan profile` writes, what an importer yields, what calibration reads.

A table holds one operator in one variant (a dtype) on one kind of hardware. Its columns are the features that
`Kernels` names the operator's size by; `FEATURES` lists them.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.specs.errors import RequestError

SCHEMA = "mortice.profile/1"
MAX_BYTES = 256 << 20

FEATURES: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "experts": ("tokens", "hidden", "size", "experts", "top_k", "ep"),
    "decode_attention": ("batch", "context", "heads", "kv_heads", "head_dim", "q_len"),
    "decode_mla": ("batch", "context", "heads", "kv_heads", "head_dim", "q_len"),
    "prefill_attention": ("batch", "tokens", "prefix", "heads", "kv_heads", "head_dim"),
    "prefill_mla": ("batch", "tokens", "prefix", "heads", "kv_heads", "head_dim"),
}


class ProfileTable(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one operator: `features` columns and `seconds`, all of one length, float64."""

    hardware: str
    operator: str
    variant: str
    features: dict[str, NDArray[np.float64]]
    seconds: NDArray[np.float64]
    source: str  # who measured, with which software

    def __len__(self) -> int:
        return len(self.seconds)

    def take(self, rows: NDArray[Any]) -> "ProfileTable":
        """The table with only these rows (indices or a mask)."""
        kept = {name: column[rows] for name, column in self.features.items()}
        return msgspec.structs.replace(self, features=kept, seconds=self.seconds[rows])

    def matrix(self) -> NDArray[np.float64]:
        """(rows, features), in the order of FEATURES."""
        return np.stack([self.features[name] for name in FEATURES[self.operator]], axis=1)


class ProfileRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measurement in a profile file; `seconds` is the median of `runs`."""

    operator: str
    variant: str
    features: dict[str, float]
    seconds: float
    runs: int = 1


class ProfileFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document that `mortice plan profile` writes."""

    schema: str
    hardware: str  # catalogue name or file that the rows calibrate
    device: str  # as the machine calls itself
    software: str
    date: str
    rows: list[ProfileRow]


def read_profile(path: Path) -> list[ProfileTable]:
    """Tables of a profile file. Raises RequestError naming the file and the field that is wrong."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RequestError(f"{path} is larger than {MAX_BYTES >> 20} MiB", param="profile")
        file = msgspec.json.decode(path.read_bytes(), type=ProfileFile)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}", param="profile") from error
    except msgspec.DecodeError as error:
        raise RequestError(f"{path}: {error}", param="profile") from error
    if file.schema != SCHEMA:
        raise RequestError(f"{path}: schema is {file.schema!r}; this version reads {SCHEMA}", param="schema")
    grouped: dict[tuple[str, str], list[ProfileRow]] = {}
    for i, row in enumerate(file.rows):
        if row.operator not in FEATURES:
            known = ", ".join(FEATURES)
            raise RequestError(
                f"{path}: rows[{i}].operator {row.operator!r}; known are {known}", param="operator"
            )
        if set(row.features) != set(FEATURES[row.operator]):
            needed = ", ".join(FEATURES[row.operator])
            raise RequestError(f"{path}: rows[{i}].features must be {needed}", param="features")
        grouped.setdefault((row.operator, row.variant), []).append(row)
    return [
        ProfileTable(
            hardware=file.hardware,
            operator=operator,
            variant=variant,
            features={name: np.array([row.features[name] for row in rows]) for name in FEATURES[operator]},
            seconds=np.array([row.seconds for row in rows]),
            source=f"{file.device}, {file.software}, {file.date}",
        )
        for (operator, variant), rows in grouped.items()
    ]
