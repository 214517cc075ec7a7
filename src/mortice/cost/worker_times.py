"""Seconds of one worker's step as a few numbers: what planner, policies and simulator price a batch with.

    prefill   base + token * n + square * sum((prefix + n)^2 - prefix^2)
    decode    base + sequence * B + context * sum(contexts)
    mixed     the larger base once (the weights are read once), then both variable parts

The form is DistServe's (arXiv 2401.09670, appendix A, with the batch term of its code), in one branch, so that time
never falls as load grows. A measured worker is fitted in relative error, as they fit it.
"""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.cost.accounting import kv_cache_bytes
from mortice.cost.kernels import Kernels
from mortice.cost.layout import Formats, Layout, max_batch
from mortice.cost.step import decode_step, prefill_step
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape

PROMPTS = (32, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
BATCHES = (1, 4, 8, 16, 32, 64, 96, 128, 192, 256)
CONTEXTS = (256, 1024, 2048, 4096, 8192)


class WorkerTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One instance (one copy of the weights) of `gpus` accelerators. Seconds, tokens, bytes."""

    prefill_base_s: float
    prefill_token_s: float
    prefill_square_s: float = 0.0
    decode_base_s: float
    decode_sequence_s: float
    decode_context_s: float
    kv_tokens: int  # tokens of KV that the instance holds
    kv_token_bytes: float = 0.0  # of one token, all layers and ranks
    gpus: int = 1
    pp: int = 1  # pipeline stages: a new prefill batch may start after 1/pp of the time of the one before
    source: str = "given"

    def check(self) -> None:
        """Raise RequestError naming the first field that makes no sense."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise RequestError(f"{name} must be finite and not negative, not {value:g}", param=name)
        if (
            self.prefill_token_s + self.prefill_base_s <= 0
            or self.decode_base_s + self.decode_sequence_s <= 0
        ):
            raise RequestError("a step must take time: give a base or a time a token", param="prefill_base_s")
        for name in ("kv_tokens", "gpus", "pp"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, not {getattr(self, name)}", param=name)

    def prefill_s(self, tokens: float, prefix: float = 0.0) -> float:
        """One prompt of `tokens` new tokens after `prefix` cached ones, alone."""
        square = tokens * (tokens + 2.0 * prefix)
        return self.prefill_base_s + self.prefill_token_s * tokens + self.prefill_square_s * square

    def decode_s(self, batch: float, context: float) -> float:
        """A step of `batch` sequences whose contexts sum to `context` tokens."""
        return self.decode_base_s + self.decode_sequence_s * batch + self.decode_context_s * context

    def mixed_s(self, tokens: float, square: float, batch: float, context: float) -> float:
        """A step that computes prompt chunks (`tokens`, and `square` as above) beside a decode batch."""
        base = max(self.prefill_base_s if tokens else 0.0, self.decode_base_s if batch else 0.0)
        return (
            base
            + self.prefill_token_s * tokens
            + self.prefill_square_s * square
            + self.decode_sequence_s * batch
            + self.decode_context_s * context
        )

    def best_batch(self, context: float, limit_s: float) -> int:
        """Largest decode batch of sequences of `context` tokens within `limit_s` a step and within memory; 0 if none."""
        each = self.decode_sequence_s + self.decode_context_s * context
        by_time = (limit_s - self.decode_base_s) / each if each > 0 else math.inf
        return max(0, int(min(by_time, self.kv_tokens / max(context, 1.0))))


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


def relative_fit(terms: NDArray[np.float64], seconds: NDArray[np.float64]) -> list[float]:
    """Non-negative weights of the columns of `terms` with the least squares of relative errors."""
    from scipy.optimize import nnls  # heavy, and needed only to fit

    relative = terms / seconds[:, None]
    scale = np.maximum(relative.max(axis=0), 1e-300)
    found, _ = nnls(relative / scale, np.ones(len(seconds)))
    return [float(value) for value in found / scale]
