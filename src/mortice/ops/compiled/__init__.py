"""Kernels in C for models on a CPU: what torch has no fused operator for, and products that wait for memory.

They work on bfloat16 with AVX-512 (and the matrix unit, AMX, where there is one), are compiled by the system's gcc
when first wanted, and are never needed: without them torch does the work.
"""

from mortice.ops.compiled.build import reason_without
from mortice.ops.compiled.kernels import GROUP, MAX_HEAD_DIM, Kernels, kernels_for, load

__all__ = ["GROUP", "MAX_HEAD_DIM", "Kernels", "kernels_for", "load", "reason_without"]
