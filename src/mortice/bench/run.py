"""One benchmark from options to result: plan the requests, agree with the server, warm up, run, measure."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from mortice import __version__
from mortice.bench.arrivals import Arrival, Process, jittered
from mortice.bench.endpoint import Api, Endpoint
from mortice.bench.load import Job, LoadRun, RealClock, closed_loop, open_loop
from mortice.bench.loop import LOOP_NAME
from mortice.bench.meter import VOID_SHARE, client_cpu_s, machine, server_cpu_s
from mortice.bench.negotiate import Terms, first_model, negotiate
from mortice.bench.prompts import PromptMaker, PromptSource
from mortice.bench.report import measure
from mortice.bench.timeline import Timeline
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.workload import Clip, Trace, TraceRequest, read_trace

PREPARED_TOKENS = (
    4_000_000  # prompts up to this many tokens are written before the run, longer loads during it
)
MOONCAKE_TICK_S = 3.0


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
        for name in ("num_prompts", "input_len", "output_len", "concurrency"):
            _at_least(name, getattr(self, name), 1)
        for name in ("max_input", "max_output"):
            _at_least(name, getattr(self.clip, name), 1)
        _at_least("warmup", self.warmup, 0)
        _at_least("temperature", self.temperature, 0)
        for name in ("rate", "cv", "trace_scale", "trace_duration", "max_duration", "timeout"):
            value = getattr(self, name, None) or getattr(self, f"{name}_s", None)
            asked = getattr(self, name, getattr(self, f"{name}_s", None))
            if asked is not None and not (value and 0 < value < float("inf")):
                raise RequestError(f"{_flag(name)} must be above 0, not {asked:g}", param=_flag(name))
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
            raise RequestError("the chat API takes no token ids: use --api completions", param="--prompts")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _at_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not value >= least:
        raise RequestError(f"{_flag(name)} must be at least {least}, not {value:g}", param=_flag(name))


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
        trace = read_trace(options.trace)
        if options.jitter:
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


class Watch:
    """Told how a run goes; the base class says nothing. `mortice bench` has one with a progress bar."""

    def begin(self, label: str, total: int) -> None: ...

    def ended(self, timeline: Timeline) -> None: ...

    def finish(self) -> None: ...


class Bench:
    """A workload against an endpoint. `prepare` once, then `run` as often as needed."""

    def __init__(self, options: BenchOptions, watch: Watch | None = None) -> None:
        options.check()
        options.slo.check()
        self.options = options
        self.workload = Workload(options)
        self.watch = watch or Watch()
        self.endpoint = Endpoint(
            options.base_url,
            options.model or "",
            api=options.api,
            api_key=options.api_key,
            timeout_s=options.timeout_s,
        )
        self._terms: Terms | None = None
        self._runs = 0

    async def prepare(self) -> None:
        """Agree with the server and warm it up. Raises Unavailable or RequestError."""
        options = self.options
        if options.model is None:
            self.endpoint.model = await first_model(self.endpoint)
        self._terms = await negotiate(
            self.endpoint,
            ignore_eos=options.ignore_eos,
            temperature=options.temperature,
            source=options.prompts,
        )
        if options.warmup:
            shapes = [
                msgspec.structs.replace(r, blocks=()) for r in self.workload.requests()[: options.warmup]
            ]
            shapes = (shapes * options.warmup)[: options.warmup]
            self.watch.begin("warm-up", len(shapes))
            concurrency = min(options.warmup, options.concurrency or 8)
            jobs = list(self._jobs(shapes, "warm-up"))
            await closed_loop(
                jobs,
                self._send,
                concurrency=concurrency,
                clock=RealClock(),
                stop_after_s=None,
                on_end=self.watch.ended,
            )
            self.watch.finish()

    async def run(self, rate: float | None = None, *, intervals: bool = True) -> tuple[dict, LoadRun]:
        """Run the workload, at another rate where one is given, and return the result document and the raw
        run."""
        options, watch, clock = self.options, self.watch, RealClock()
        requests = self.workload.requests(rate)
        self._runs += 1
        jobs = self._jobs(requests, f"run {self._runs}")
        if sum(r.prompt_len for r in requests) <= PREPARED_TOKENS:
            jobs = iter(list(jobs))
        watch.begin("closed loop" if options.loop == "closed" and not rate else "open loop", len(requests))
        started_at = datetime.now(UTC)
        server_before = await server_cpu_s(self.endpoint)
        client_before = client_cpu_s()
        if options.loop == "closed" and rate is None:
            loaded = await closed_loop(
                jobs,
                self._send,
                concurrency=options.concurrency or 8,
                clock=clock,
                stop_after_s=options.max_duration_s,
                on_end=watch.ended,
            )
        else:
            loaded = await open_loop(
                jobs, self._send, clock=clock, stop_after_s=options.max_duration_s, on_end=watch.ended
            )
        client_s = client_cpu_s() - client_before
        server_after = await server_cpu_s(self.endpoint)
        watch.finish()
        measured = measure(loaded, options.slo, seed=options.seed, intervals=intervals)
        seconds = measured["duration_s"]
        tokens = sum(t.num_tokens for t in loaded.timelines)
        client = {
            "cpu_s": client_s,
            "share_of_core": client_s / seconds,
            "us_per_token": client_s / tokens * 1e6 if tokens else None,
            "event_loop": LOOP_NAME,
        }
        server = None
        if server_before is not None and server_after is not None:
            server = {
                "cpu_s": server_after - server_before,
                "cores": (server_after - server_before) / seconds,
            }
        result = {
            "kind": "bench",
            "mortice": __version__,
            "started_at": started_at.isoformat(timespec="seconds"),
            "base_url": self.endpoint.base_url,
            "model": self.endpoint.model,
            "api": options.api,
            "workload": self.workload.describe(rate),
            "request": self._describe_request(),
            **measured,
            "client": client | machine(),
            "server": server,
            "void": client["share_of_core"] > VOID_SHARE,
        }
        result["notes"] = self._notes(result)
        return result, loaded

    def close(self) -> None:
        self.endpoint.close()

    def _jobs(self, requests: list[TraceRequest] | tuple[TraceRequest, ...], label: str) -> Iterator[Job]:
        assert self._terms is not None, "prepare first"
        terms, trace = self._terms, self.workload.trace
        maker = PromptMaker(terms.calibration, self.options.seed)
        for index, request in enumerate(requests):
            prompt = maker.make(
                f"{label} {index}", request.prompt_len, request.blocks, trace.block_tokens if trace else 0
            )
            body = terms.body(self.endpoint, prompt, request.output_len)
            yield Job(index, body, request.prompt_len, request.output_len, request.at_s)

    async def _send(self, job: Job, timeline: Timeline) -> None:
        await self.endpoint.stream(job.body, timeline)

    def _describe_request(self) -> dict:
        assert self._terms is not None
        fields = self._terms.fields
        eos = (
            "sent"
            if "ignore_eos" in fields
            else "refused by the server"
            if self.options.ignore_eos
            else "off"
        )
        return {
            "ignore_eos": eos,
            "temperature": self.options.temperature,
            "refused_fields": list(self._terms.refused),
            "prompts": msgspec.to_builtins(self._terms.calibration),
        }

    def _notes(self, result: dict) -> list[str]:
        """What a reader must know before quoting the figures."""
        notes: list[str] = []

        def note(applies: bool, text: Callable[[], str]) -> None:
            if applies:
                notes.append(text())

        client, lag = result["client"]["share_of_core"], result["send_lag_ms"]
        note(
            result["void"], lambda: f"VOID: the client used {client:.0%} of a core; this measures the client"
        )
        note("ignore_eos" in result["request"]["refused_fields"], lambda: "the server refused ignore_eos")
        short = result["num_cut_short"]
        note(short > 0, lambda: f"{short} answers ended before the output length that was asked for")
        blind = result["num_without_usage"]
        note(blind > 0, lambda: f"{blind} answers came without usage: their tokens are counted as chunks")
        by = result["request"]["prompts"]["counted_by"]
        note(by == "nothing", lambda: "the server counts no tokens: input lengths are in words")
        late = lag["p99"] or 0.0
        note(
            late > 50, lambda: f"the client sent late (p99 {late:.0f} ms): the load was softer than asked for"
        )
        note(result["stopped_early"], lambda: "--max-duration ended the run before all requests were sent")
        hit = result["cached_input_tokens"]
        note(hit > 0, lambda: f"the server took {hit} input tokens from its prefix cache")
        return notes
