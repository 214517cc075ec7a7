"""Compiles ahead what an engine's products on this CPU run, so that no request waits for a compiler."""

from collections.abc import Iterator

import torch

from mortice.ops.compiled import kernels_for
from mortice.ops.linear import PANEL_DEPTHS, PANEL_HEIGHTS, PanelWeight

DEPTHS = (*PANEL_DEPTHS, 512)
COLUMNS = (32, 2080)  # of the product: one of each width


def compile_ahead(depths: tuple[int, ...] = DEPTHS) -> Iterator[str]:
    """Names each product as it is ready. Nothing where torch does the products (another processor, no compiler)."""
    for depth in depths:
        weight = torch.zeros(max(COLUMNS), depth, dtype=torch.bfloat16)
        if kernels_for(weight) is None:
            return
        for columns in COLUMNS:
            panel = PanelWeight(weight[:columns])
            panel.rows(torch.zeros(1, dtype=torch.int64))
            for rows in PANEL_HEIGHTS:
                panel.product(torch.zeros(rows, depth, dtype=torch.bfloat16), None)
                yield f"{rows} rows, {columns} columns, depth {depth}"
