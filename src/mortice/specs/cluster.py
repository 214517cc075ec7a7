"""The part of a deployment document that says what its workers stand on, what they must meet, and who decides how many."""

import math
from typing import Literal

import msgspec

from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes

PolicyName = Literal["static", "reactive", "dopd", "dopd-released", "mortice"]


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
    convertible: bool = False  # decode workers may prefill in a burst

    def check(self) -> None:
        """Raise RequestError naming the first field that makes no sense."""
        for name in ("prefill_tp", "prefill_pp", "decode_tp", "decode_pp"):
            if not 1 <= getattr(self, name) <= 1024:
                raise RequestError(
                    f"cluster.{name} must be 1 to 1024, not {getattr(self, name)}", param=f"cluster.{name}"
                )
        for name in ("start_s", "flip_s", "port_bytes_per_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise RequestError(
                    f"cluster.{name} must not be negative, not {value:g}", param=f"cluster.{name}"
                )
        if not (math.isfinite(self.period_s) and self.period_s > 0):
            raise RequestError(
                f"cluster.period_s must be above 0, not {self.period_s:g}", param="cluster.period_s"
            )
        if self.hardware is None and (self.prefill_times is None or self.decode_times is None):
            raise RequestError(
                "cluster.hardware: name the hardware, or give prefill_times and decode_times",
                param="cluster.hardware",
            )
        for times in (self.prefill_times, self.decode_times):
            if times is not None:
                times.check()
        self.slo.check()
        if self.prefill_times and self.decode_times:
            ours, theirs = self.prefill_times.kv_token_bytes, self.decode_times.kv_token_bytes
            if ours != theirs:
                raise RequestError(
                    f"cluster.decode_times.kv_token_bytes: prefill writes {ours:g} bytes a token, decode reads {theirs:g}: "
                    "they cannot exchange KV",
                    param="cluster.decode_times.kv_token_bytes",
                )
