"""What can be asked of a benchmark, checked as a whole."""

from pathlib import Path
from typing import Literal

import msgspec

from mortice.bench.arrivals import Process
from mortice.bench.endpoint import Api
from mortice.bench.prompts import PromptSource
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.workload import Clip


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. A closed loop unless `rate` (open loop) or `trace` (replay) is set."""

    base_url: str
    model: str | None = None  # None: the first one the server lists
    api: Api = "completions"
    api_key: str | None = None
    num_prompts: int | None = None  # None: 16, or the whole trace
    input_len: int = 128
    output_len: int = 64
    concurrency: int | None = None  # None: 8 in a closed loop
    rate: float | None = None  # requests a second
    arrival: Process | None = None  # None: poisson
    cv: float | None = None  # gamma only
    trace: Path | None = None
    trace_scale: float | None = None  # 2: twice as fast
    trace_duration_s: float | None = None  # of the trace's own time
    jitter: bool = False  # undo the trace's 3 s tick
    clip: Clip = Clip()
    seed: int = 0
    warmup: int = 2
    max_duration_s: float | None = None
    timeout_s: float = 600.0
    temperature: float = 0.0
    ignore_eos: bool = True
    prompts: PromptSource = "auto"
    slo: SLO = SLO()

    @property
    def loop(self) -> Literal["closed", "open", "trace"]:
        return "trace" if self.trace is not None else "open" if self.rate is not None else "closed"

    def check(self) -> None:
        """Raise RequestError naming the first option that makes no sense, alone or beside the others."""
        counts = {
            "--num-prompts": self.num_prompts,
            "--input-len": self.input_len,
            "--output-len": self.output_len,
            "--concurrency": self.concurrency,
            "--max-input": self.clip.max_input,
            "--max-output": self.clip.max_output,
        }
        for flag, count in counts.items():
            _at_least(flag, count, 1)
        _at_least("--warmup", self.warmup, 0)
        _at_least("--temperature", self.temperature, 0)
        slo = self.slo
        amounts = {
            "--slo-ttft-ms": slo.ttft_ms,
            "--slo-tpot-ms": slo.tpot_ms,
            "--slo-e2e-ms": slo.e2e_ms,
            "--rate": self.rate,
            "--cv": self.cv,
            "--trace-scale": self.trace_scale,
            "--trace-duration": self.trace_duration_s,
            "--max-duration": self.max_duration_s,
            "--timeout": self.timeout_s,
        }
        for flag, amount in amounts.items():
            if amount is not None and not 0 < amount < float("inf"):
                raise RequestError(f"{flag} must be above 0, not {amount:g}", param=flag)
        if not 0 < slo.target <= 1:
            raise RequestError(f"--target must be above 0 and up to 1, not {slo.target:g}", param="--target")
        self._check_loop()

    def _check_loop(self) -> None:
        if self.loop != "closed" and self.concurrency is not None:
            raise RequestError(
                "--concurrency is for a closed loop: leave out --rate and --trace", param="--concurrency"
            )
        if self.loop == "trace" and self.rate is not None:
            raise RequestError("a trace has its own arrivals: use --trace-scale, not --rate", param="--rate")
        if self.loop != "open" and self.arrival is not None:
            raise RequestError("--arrival needs --rate", param="--arrival")
        if (self.cv is not None) != (self.arrival == "gamma"):
            raise RequestError("--cv and --arrival gamma go together", param="--cv")
        if self.loop != "trace":
            only = {
                "--trace-scale": self.trace_scale,
                "--trace-duration": self.trace_duration_s,
                "--jitter": self.jitter or None,
                "--max-input": self.clip.max_input,
                "--max-output": self.clip.max_output,
            }
            for flag, value in only.items():
                if value is not None:
                    raise RequestError(f"{flag} needs --trace", param=flag)
        if self.prompts == "token-ids" and self.api == "chat":
            raise RequestError("--prompts token-ids needs --api completions", param="--prompts")


def _at_least(flag: str, value: float | None, least: int) -> None:
    if value is not None and not value >= least:
        raise RequestError(f"{flag} must be at least {least}, not {value:g}", param=flag)
