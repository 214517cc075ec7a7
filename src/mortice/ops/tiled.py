"""Whether an operator's kernel in the tile language is what runs for a tensor."""

import functools

import torch
from torch import Tensor

from mortice.tile import UnsupportedError
from mortice.tile.c.build import find_compiler

TYPES = (torch.float32, torch.float16, torch.bfloat16)


def tiled_on_cpu(x: Tensor) -> bool:
    """On a CPU with a C compiler, for what needs no gradient; else torch does the work."""
    learns = x.requires_grad and torch.is_grad_enabled()
    return x.is_cpu and x.dtype in TYPES and not learns and _compiler()


@functools.cache
def _compiler() -> bool:
    try:
        find_compiler()
    except UnsupportedError:
        return False
    return True
