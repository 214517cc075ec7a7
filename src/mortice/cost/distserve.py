"""DistServe's published latency coefficients and memory limits (LLMServe/DistServe at 82831f1; A100-80G SXM, FP16).

Milliseconds. The data is kept as it is, with its flaws: the two decode branches do not meet at B = 95, and one
quadratic term is negative, so time falls there as load grows. Nothing new should be fitted this way;
cost/worker_times.py is not.
"""

from typing import Literal

import msgspec

from mortice.specs.errors import RequestError

Engine = Literal["distserve", "vllm"]
Triple = tuple[float, float, float]

LARGE_BATCH = 95  # from this batch on the second decode triple holds

# (model, tp) -> prefill, decode below 95, decode from 95 on; each (constant, per token, per token^2 or per sequence)
_DISTSERVE: dict[tuple[str, int], tuple[Triple, Triple, Triple]] = {
    ("opt-13b", 1): ((18.103, 0.10191, 7.1223e-6), (19.935, 6.2694e-4, 0.038507), (7.1662, 5.7980e-4, 0.15831)),
    ("opt-13b", 2): ((14.743, 0.068577, 2.4496e-6), (13.295, 3.4109e-4, 0.062964), (10.639, 3.1183e-4, 0.085629)),
    ("opt-13b", 4): ((12.062, 0.038081, 5.2262e-7), (10.256, 1.8787e-4, 0.032693), (10.484, 1.7121e-4, 0.045666)),
    ("opt-66b", 2): ((43.059, 0.27423, 2.2478e-5), (48.288, 9.4243e-4, 0.12755), (28.728, 4.7448e-4, 0.29618)),
    ("opt-66b", 3): ((32.998, 0.19568, 1.2205e-5), (35.802, 5.8450e-4, 0.095267), (22.654, 5.3585e-4, 0.20851)),
    ("opt-66b", 4): ((29.442, 0.15135, 8.3175e-6), (30.760, 4.5195e-4, 0.063284), (27.471, 4.0468e-4, 0.12481)),
    ("opt-66b", 8): ((25.491, 0.10659, 3.3911e-6), (23.155, 2.2691e-4, 0.048006), (21.718, 3.7581e-4, 0.089786)),
}  # fmt: skip
_VLLM: dict[tuple[str, int], tuple[Triple, Triple, Triple]] = {
    ("opt-13b", 1): ((22.052, 0.14051, 8.0766e-6), (23.475, 5.9293e-4, 0.060727), (20.206, 4.9077e-4, 0.12000)),
    ("opt-13b", 2): ((27.441, 0.090545, 8.4521e-6), (24.541, 2.2440e-4, 0.087158), (17.948, 4.5709e-4, 0.11179)),
    ("opt-13b", 4): ((30.536, 0.051506, 4.2325e-7), (25.901, 7.7536e-5, 0.055281), (23.884, 2.8400e-4, 0.062765)),
    ("opt-66b", 2): ((58.382, 0.38264, -7.1141e-6), (57.073, 3.6461e-3, 0.22494), (26.984, 6.2001e-3, 0.44826)),
    ("opt-66b", 3): ((45.745, 0.27781, 3.6462e-5), (44.940, 8.0962e-4, 0.21288), (43.696, 8.4026e-4, 0.24006)),
    ("opt-66b", 4): ((42.965, 0.21287, 4.6010e-5), (39.582, 6.9457e-4, 0.13581), (40.860, 4.2649e-4, 0.19508)),
    ("opt-66b", 8): ((38.931, 0.15737, 4.5317e-6), (31.176, 2.7557e-4, 0.067977), (29.088, 6.0277e-4, 0.13896)),
}  # fmt: skip

# Most resident tokens of an instance, by (tp, pp); what is absent here the published search skips.
MAX_TOKENS: dict[str, dict[tuple[int, int], int]] = {
    "opt-13b": {(1, 1): 66_144, (1, 2): 163_008, (2, 1): 163_008, (4, 1): 356_736, (2, 2): 356_752},
    "opt-66b": {
        (2, 1): 11_600, (1, 2): 11_600, (3, 1): 45_056, (4, 1): 78_496, (2, 2): 78_512,
        (4, 2): 212_320, (2, 4): 212_320, (8, 1): 212_304,
    },
    "opt-175b": {(8, 1): 59_520, (3, 3): 76_192, (4, 3): 126_160, (4, 4): 192_800, (8, 2): 192_784},
}  # fmt: skip

KV_BYTES = {"opt-13b": 819_200, "opt-66b": 2_359_296, "opt-175b": 4_718_592}  # of a token, all ranks
HEADS = {"opt-13b": 40, "opt-66b": 72, "opt-175b": 96}
LAYERS = {"opt-13b": 40, "opt-66b": 64, "opt-175b": 96}


class PublishedTimes(msgspec.Struct, frozen=True):
    """Latency of one model at one tensor-parallel degree, milliseconds."""

    prefill: Triple
    decode_small: Triple
    decode_large: Triple

    def prefill_ms(self, tokens: float, squares: float) -> float:
        """A batch whose prompts sum to `tokens`, their squares to `squares`."""
        a, b, c = self.prefill
        return a + b * tokens + c * squares

    def decode_ms(self, batch: int, context: float) -> float:
        """A step of `batch` sequences whose contexts sum to `context`."""
        a, b, c = self.decode_small if batch < LARGE_BATCH else self.decode_large
        return a + b * context + c * batch


def published_times(model: str, tp: int, engine: Engine = "distserve") -> PublishedTimes:
    """Raises RequestError for a model or degree without published coefficients."""
    table = _DISTSERVE if engine == "distserve" else _VLLM
    found = table.get((model, tp))
    if found is None:
        models = sorted({name for name, _ in table})
        if model not in models:
            why = (
                "has memory limits but no published times"
                if model in MAX_TOKENS
                else "has no published times"
            )
            raise RequestError(f"model: {model} {why}; there are {', '.join(models)}", param="model")
        degrees = ", ".join(str(t) for name, t in table if name == model)
        raise RequestError(
            f"tp: {model} has no published times at tensor parallelism {tp}; there are {degrees}", param="tp"
        )
    return PublishedTimes(*found)


def max_tokens(model: str, tp: int, pp: int) -> int:
    """Raises RequestError for a layout that the published table does not hold (it does not fit, or was not measured)."""
    found = MAX_TOKENS.get(model, {}).get((tp, pp))
    if found is None:
        known = " ".join(f"{t},{p}" for t, p in MAX_TOKENS.get(model, {})) or "none"
        raise RequestError(
            f"layout: {model} at TP,PP {tp},{pp} is not in the memory table; it has {known}", param="layout"
        )
    return found
