"""The part of a deployment document that says what its workers stand on, what they must meet, and who decides how many."""

import math
from typing import Literal

import msgspec

from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.step_spread import StepSpread
from mortice.specs.worker_times import WorkerTimes

PolicyName = Literal["static", "reactive", "dopd", "dopd-released", "mortice"]


_ABOVE_0 = 1e-9
_BOUNDS: dict[str, tuple[float, float]] = {  # lowest and highest that make sense
    **dict.fromkeys(("prefill_tp", "prefill_pp", "decode_tp", "decode_pp"), (1, 1024)),
    **dict.fromkeys(("start_s", "flip_s", "dwell_s", "hysteresis", "idle_s"), (0, math.inf)),
    **dict.fromkeys(("port_bytes_per_s", "min_prefill"), (0, math.inf)),
    **dict.fromkeys(("period_s", "silence_s", "reject_late"), (_ABOVE_0, math.inf)),
    **dict.fromkeys(("min_decode", "patience"), (1, math.inf)),
}


_WORDS = {0: "not negative", _ABOVE_0: "above 0", 1: "at least 1"}


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prefill` and `decode` of the document count instances; an instance is tp * pp devices. Without prefill instances the
    others do both. Seconds, bytes a second."""

    hardware: str | None = None  # catalogue name or file; None: `prefill_times` and `decode_times` say all
    shape: str | None = None  # catalogue name or config.json of the model; None: the document's `model`
    weights: str = "bf16"
    kv: str = "bf16"
    prefill_tp: int = 1
    prefill_pp: int = 1
    decode_tp: int = 1
    decode_pp: int = 1
    prefill_times: WorkerTimes | None = None  # measured; None: the cost model's
    decode_times: WorkerTimes | None = None
    slo: SLO = SLO()
    policy: PolicyName = "static"
    max_gpus: int | None = (
        None  # workers are started and stopped up to so many devices; None: roles change only
    )
    start_s: float = 45.0  # until a started worker serves
    flip_s: float = 0.05  # of a change of role
    period_s: float = 10.0  # of the control loop
    port_bytes_per_s: float | None = None  # of one device, each direction; None: the hardware's link
    step_spread: StepSpread | None = (
        None  # of simulated steps of decoding around their expected time; None: none
    )
    prompt_spread: StepSpread | None = None  # of those with prompts in them
    fetch_prefixes: bool = (
        False  # from one prefill worker to another, where that is sooner; simulated, not served
    )
    convertible: bool = False  # decode workers may prefill in a burst; under policy mortice they always may
    min_prefill: int = 0
    min_decode: int = 1  # decode and undivided workers together
    patience: int = 6  # decisions that must agree before a pool shrinks
    dwell_s: float = 20.0  # between two changes of the division, unless requests are late
    hysteresis: float = 0.15  # gain in carried load that a change must bring
    idle_s: float = 50.0  # without traffic, until that means less load
    forecast: Literal["last", "ewma", "arima", "quantile"] = "quantile"
    reject_late: float | None = None  # refuse a request whose expected TTFT is so many times the limit
    silence_s: float = 60.0  # a live worker that says nothing for so long is fenced and replaced

    def check(self) -> None:
        """Raise RequestError naming the first field that makes no sense."""
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                what = f"{low:g} to {high:g}" if math.isfinite(high) else _WORDS[low]
                raise RequestError(f"cluster.{name} must be {what}, not {value:g}", param=f"cluster.{name}")
        for times in (self.prefill_times, self.decode_times):
            if times is not None:
                times.check()
        self.slo.check()
        for name in ("step_spread", "prompt_spread"):
            spread = getattr(self, name)
            if spread is not None:
                spread.check(f"cluster.{name}")
        if self.prefill_times and self.decode_times:
            ours, theirs = self.prefill_times.kv_token_bytes, self.decode_times.kv_token_bytes
            if ours != theirs:
                raise RequestError(
                    f"cluster.decode_times.kv_token_bytes: prefill writes {ours:g} bytes a token, decode reads {theirs:g}: "
                    "they cannot exchange KV",
                    param="cluster.decode_times.kv_token_bytes",
                )

    def check_modelled(self) -> None:
        """Raise RequestError if nothing says how long the workers' steps take. Live workers are measured instead."""
        if self.hardware is None and (self.prefill_times is None or self.decode_times is None):
            raise RequestError(
                "cluster.hardware: name the hardware, or give prefill_times and decode_times",
                param="cluster.hardware",
            )
