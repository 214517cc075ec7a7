"""From steps to what a user of an engine feels: TPOT of a closed loop of requests, and its fit to an engine.

    colocated       TPOT = a * decode step + b * (requests a step) * prefill + c
    disaggregated   TPOT = a * decode step + c

In a closed loop of n requests with outputs of `output_len` tokens, n / output_len requests end in each step and as many
prompts are prefilled between decode steps. a, b and c are an engine's: 1, 1, 0 is a perfect engine; a fit (`fit_engine`)
takes up scheduling, sampling and what its kernels differ from the profiled ones.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.cost.accounting import Number
from mortice.cost.assumption import Assumption
from mortice.cost.kernels import Kernels
from mortice.cost.layout import Formats, Layout
from mortice.cost.step import decode_step, prefill_step
from mortice.specs.errors import RequestError
from mortice.specs.shape import ModelShape


class EngineFit(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine's TPOT comes out of our steps."""

    decode: float = 1.0  # a
    prefill: float = 1.0  # b
    overhead_s: float = 0.0  # c, seconds a step
    rows: int = 0  # it was fitted on
    source: str = "a perfect engine: nothing beside the model's operators"

    def assumption(self) -> Assumption:
        value = f"{self.decode:.2f} decode + {self.prefill:.2f} prefill + {self.overhead_s * 1e3:.2f} ms"
        return Assumption("engine", value, self.source)


def loop_terms(
    model: ModelShape,
    kernels: Kernels,
    layout: Layout,
    concurrency: Number,
    prompt_len: Number,
    output_len: Number,
    formats: Formats,
    *,
    colocated: bool,
) -> NDArray[np.float64]:
    """(..., 3): seconds of the decode step, of the prefill that falls on it, and 1; what `EngineFit` weighs."""
    context = np.asarray(prompt_len, float) + 0.5 * np.asarray(output_len, float)
    decode = np.asarray(decode_step(model, kernels, layout, concurrency, context, formats=formats).total_s)
    share = np.zeros_like(decode)
    if colocated:
        prompt = prefill_step(model, kernels, layout, prompt_len, batch=layout.dp, formats=formats).total_s
        each = np.asarray(concurrency, float) / np.asarray(layout.dp) / np.asarray(output_len, float)
        share = each * np.asarray(prompt) + share
    return np.stack([decode, share, np.ones_like(decode)], axis=-1)


def tpot_s(terms: NDArray[np.float64], fit: EngineFit) -> NDArray[np.float64]:
    """Seconds between two tokens of a request."""
    found: NDArray[np.float64] = terms @ np.array([fit.decode, fit.prefill, fit.overhead_s])
    return found


def fit_engine(terms: NDArray[np.float64], measured_s: NDArray[np.float64], source: str) -> EngineFit:
    """Non-negative weights with the least sum of absolute relative errors (least squares, reweighted), so that odd
    runs pull little. Raises RequestError for fewer than six rows."""
    if len(measured_s) < 6:
        raise RequestError(f"an engine's fit needs six rows or more, got {len(measured_s)}", param="rows")
    from scipy.optimize import nnls  # heavy, and needed only to fit

    relative = terms / measured_s[:, None]
    weight = np.ones(len(measured_s))
    found = np.array([1.0, 1.0, 0.0])
    for _ in range(40):
        root = np.sqrt(weight)[:, None]
        found, _ = nnls(relative * root, root[:, 0])
        weight = 1.0 / np.maximum(np.abs(relative @ found - 1), 0.02)
    return EngineFit(
        decode=float(found[0]),
        prefill=float(found[1]),
        overhead_s=float(found[2]),
        rows=len(measured_s),
        source=source,
    )
