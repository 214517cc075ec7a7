"""A hardware file for a machine that was only measured: peaks and bandwidth are the best that its profile shows."""

from typing import Any

import numpy as np

from mortice.cost.profile_table import ProfileTable


def measured_hardware(name: str, machine: dict[str, Any], tables: list[ProfileTable]) -> dict[str, Any]:
    """The fields of a hardware file (specs/hardware_file.py). A peak is the fastest matrix product of that dtype, the
    bandwidth that of a copy; both are lower bounds of the machine's."""
    peaks: dict[str, float] = {}
    bandwidth = float(machine["copy_bytes_per_s"])
    for table in tables:
        if table.operator != "gemm":
            continue
        f = table.features
        flops = float(np.max(2 * f["m"] * f["n"] * f["k"] / table.seconds))
        peaks[table.variant] = max(flops, peaks.get(table.variant, 0.0))
    return {
        "name": name,
        "title": str(machine["device"]),
        "status": "measured",
        "source": f"mortice plan profile, {machine['software']}",
        "architecture": "arm"
        if "arm" in str(machine["device"]) or "aarch" in str(machine["device"])
        else "x86",
        "per": "package",
        "peaks": {dtype: f"{flops / 1e9:.4g} GFLOP/s dense" for dtype, flops in peaks.items()},
        "memory": {
            "size": f"{machine['memory_bytes'] / 1e9:.4g} GB",
            "bandwidth": f"{bandwidth / 1e9:.4g} GB/s",
        },
        "tiles": {"attention_rows": 1, "gemm": [1, 16]},
    }
