"""Which requests a run sends, and when: a shape repeated, or the rows of a trace."""

import msgspec

from mortice.bench.arrivals import Arrival, jittered
from mortice.bench.options import BenchOptions
from mortice.specs.errors import RequestError
from mortice.specs.workload import Trace, TraceRequest, read_trace

MOONCAKE_TICK_S = 3.0


class Workload:
    """The requests of a run, at any rate that is asked for. Same options and seed: the same requests."""

    def __init__(self, options: BenchOptions) -> None:
        """Reads the trace, if there is one. Raises RequestError."""
        self.options = options
        self.trace = self._read() if options.trace is not None else None
        natural = self.trace.mean_rate if self.trace else None
        self.rate = options.rate or natural  # requests a second as asked for; None in a closed loop

    def _read(self) -> Trace:
        options = self.options
        assert options.trace is not None
        try:
            trace = read_trace(options.trace)
        except RequestError as error:
            raise RequestError(f"--trace: {error.message}", param="--trace") from error
        if options.jitter:
            if trace.format != "mooncake":
                raise RequestError("--jitter undoes the 3 s tick of a Mooncake trace", param="--jitter")
            trace = jittered(trace, MOONCAKE_TICK_S, options.seed)
        if options.trace_duration_s is not None:
            trace = trace.until(options.trace_duration_s)
        trace = trace.clipped(options.clip)
        if options.num_prompts is not None:
            trace = msgspec.structs.replace(trace, requests=trace.requests[: options.num_prompts])
        if not trace.requests:
            raise RequestError("the clip rule leaves no request of the trace", param="--max-input")
        return trace.scaled(options.trace_scale or 1.0)

    def requests(self, rate: float | None = None) -> tuple[TraceRequest, ...]:
        """The arrivals; at another `rate` (requests a second) than the options' where one is given."""
        if self.trace is not None:
            scale = rate / self.trace.mean_rate if rate and self.trace.mean_rate else 1.0
            return self.trace.scaled(scale).requests
        options = self.options
        count = options.num_prompts or 16
        times = [0.0] * count
        if rate := rate or options.rate:
            arrival = Arrival(process=options.arrival or "poisson", rate=rate, cv=options.cv or 1.0)
            times = arrival.times(count, options.seed)
        return tuple(TraceRequest(t, options.input_len, options.output_len) for t in times)

    def describe(self, rate: float | None = None) -> dict:
        """What a reader needs to repeat the run."""
        options = self.options
        said: dict = {"loop": options.loop, "seed": options.seed, "num_warmup": options.warmup}
        if self.trace is None:
            said |= {"num_prompts": options.num_prompts or 16}
            said |= {"input_len": options.input_len, "output_len": options.output_len}
        if options.loop == "closed" and rate is None:
            said["concurrency"] = options.concurrency or 8
        elif self.trace is None:
            process = options.arrival or "poisson"
            said |= {"arrival": process, "rate": rate or options.rate, "cv": options.cv or 1.0}
        else:
            trace = self.trace
            said |= {
                "trace": trace.name,
                "format": trace.format,
                "num_prompts": len(trace.requests),
                "rate": rate or trace.mean_rate,
                "scale": options.trace_scale or 1.0,
                "duration_s": options.trace_duration_s,
                "jitter_s": MOONCAKE_TICK_S if options.jitter else 0.0,
                "clip": msgspec.to_builtins(options.clip) | {"num_rows": trace.num_clipped},
                "num_failed_rows_left_out": trace.num_failed_rows,
                "prefix_block_tokens": trace.block_tokens or None,
            }
        return said
