"""One benchmark from options to result: agree with the server, warm up, send, measure."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import msgspec

from mortice import __version__
from mortice.bench.endpoint import Endpoint
from mortice.bench.load import Job, LoadRun, RealClock, closed_loop, open_loop
from mortice.bench.loop import LOOP_NAME
from mortice.bench.meter import VOID_SHARE, client_cpu_s, machine, server_cpu_s
from mortice.bench.negotiate import Terms, first_model, negotiate
from mortice.bench.options import BenchOptions
from mortice.bench.plan import Workload
from mortice.bench.prompts import PromptMaker
from mortice.bench.report import measure
from mortice.bench.timeline import Timeline
from mortice.specs.workload import TraceRequest

PREPARED_TOKENS = (
    4_000_000  # prompts up to this many tokens are written before the run, longer loads during it
)


class Watch:
    """Told how a run goes; the base class says nothing. `mortice bench` has one with a progress bar."""

    def begin(self, label: str, total: int) -> None: ...

    def ended(self, timeline: Timeline) -> None: ...

    def finish(self) -> None: ...


class Bench:
    """A workload against an endpoint. `prepare` once, then `run` as often as needed."""

    def __init__(self, options: BenchOptions, watch: Watch | None = None) -> None:
        options.check()
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
                msgspec.structs.replace(r, blocks=(), leaves_after_s=None)
                for r in self.workload.requests()[: options.warmup]
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
            "num_resent": self.endpoint.client.num_resent,
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

    def _jobs(self, requests: Sequence[TraceRequest], label: str) -> Iterator[Job]:
        assert self._terms is not None, "prepare first"
        terms, trace = self._terms, self.workload.trace
        maker = PromptMaker(terms.calibration, self.options.seed)
        for index, request in enumerate(requests):
            prompt = maker.make(
                f"{label} {index}", request.prompt_len, request.blocks, trace.block_tokens if trace else 0
            )
            body = terms.body(self.endpoint, prompt, request.output_len)
            yield Job(
                index, body, request.prompt_len, request.output_len, request.at_s, request.leaves_after_s
            )

    async def _send(self, job: Job, timeline: Timeline) -> None:
        await self.endpoint.stream(job.body, timeline, leaves_after_s=job.leaves_after_s)

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
        again = result["client"]["num_resent"]
        note(again > 0, lambda: f"{again} requests were sent again: the server had closed an idle connection")
        note(result["stopped_early"], lambda: "--max-duration ended the run before all requests were sent")
        hit = result["cached_input_tokens"]
        note(hit > 0, lambda: f"the server took {hit} input tokens from its prefix cache")
        return notes
