"""Fits of `WorkerTimes` (specs/worker_times.py) to the cost model's operators, in relative error."""

import numpy as np
from numpy.typing import NDArray

from mortice.cost.accounting import kv_cache_bytes
from mortice.cost.kernels import Kernels
from mortice.cost.layout import Formats, Layout, max_batch
from mortice.cost.step import decode_step, prefill_step
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape
from mortice.specs.worker_times import WorkerTimes

PROMPTS = (32, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
BATCHES = (1, 4, 8, 16, 32, 64, 96, 128, 192, 256)
CONTEXTS = (256, 1024, 2048, 4096, 8192)


def worker_times(
    model: ModelShape, hardware: HardwareSpec, layout: Layout, formats: Formats, *, longest: int = 8192
) -> WorkerTimes:
    """Fit the cost model's steps of one instance: non-negative least squares of relative errors.

    `longest` bounds the prompts that are fitted. Raises RequestError where the layout cannot hold the model.
    """
    kernels = Kernels(hardware)
    room = float(np.asarray(max_batch(model, hardware, layout, 1024.0, formats)))
    if room < 1:
        raise RequestError(
            f"model: {model.name} in {formats.weights} does not fit {layout.packages} x {hardware.name}; "
            "give more packages, a smaller dtype, or hardware with more memory",
            param="model",
        )
    tokens = np.array([p for p in PROMPTS if p <= max(longest, 512)], dtype=float)
    prefill = np.asarray(prefill_step(model, kernels, layout, tokens, formats=formats).total_s, dtype=float)
    batch, context = (g.ravel() for g in np.meshgrid(BATCHES, CONTEXTS, indexing="ij"))
    held = batch * context <= room * 1024
    batch, context = batch[held].astype(float), context[held].astype(float)
    pp = int(layout.pp)
    step = decode_step(model, kernels, layout, batch, context, formats=formats).total_s
    decode = np.broadcast_to(np.asarray(step, dtype=float), batch.shape)
    a = relative_fit(np.stack([np.ones_like(tokens), tokens, tokens**2], axis=1), prefill)
    d = relative_fit(np.stack([np.ones_like(batch), batch, batch * context], axis=1), decode)
    full = float(np.asarray(max_batch(model, hardware, layout, 1.0, formats)))
    from_room = int(min(full, room * 1024))
    return WorkerTimes(
        prefill_base_s=a[0],
        prefill_token_s=a[1],
        prefill_square_s=a[2],
        decode_base_s=d[0],
        decode_sequence_s=d[1],
        decode_context_s=d[2],
        kv_tokens=max(1, from_room),
        kv_token_bytes=model_kv_bytes(model, formats.kv),
        gpus=int(layout.packages),
        pp=pp,
        source=f"{model.name} on {int(layout.packages)} x {hardware.name}, {formats.weights} weights: cost model",
    )


def model_kv_bytes(model: ModelShape, kv: str) -> float:
    """Bytes of one more token of KV at a context of 1,024."""
    from_, to = (float(np.asarray(kv_cache_bytes(model, n, kv))) for n in (1024.0, 1025.0))
    return to - from_


def relative_fit(
    terms: NDArray[np.float64], seconds: NDArray[np.float64], by: NDArray[np.float64] | None = None
) -> list[float]:
    """Non-negative weights of the columns of `terms` with the least squares of errors relative to `by`, or to `seconds`."""
    from scipy.optimize import nnls  # heavy, and needed only to fit

    by = seconds if by is None else by
    relative = terms / by[:, None]
    scale = np.maximum(relative.max(axis=0), 1e-300)
    found, _ = nnls(relative / scale, seconds / by)
    return [float(value) for value in found / scale]
