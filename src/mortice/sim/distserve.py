"""DistServe's published simulator, its semantics kept (LLMServe/DistServe at 82831f1, `simdistserve`): milliseconds.

A prefill batch takes prompts in order while the rest of the budget holds the next; a decode batch takes from its queue
while contexts sum to at most 50,000; each head adds 2 ms and 1e-4 ms a token; TTFT ends with prefill, transfer is free, no
memory is held; a request leaves after O decode rounds and its TPOT is the time since the first token over O. Colocated
instances prefill strictly before they decode, with the vLLM coefficients. What it leaves out, `sim/cluster.py` has.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.cost.distserve import Engine, PublishedTimes, max_tokens, published_times
from mortice.specs.errors import RequestError
from mortice.specs.workload import TraceRequest

DECODE_TOKENS = 50_000  # a constant there, whatever fits
HEAD_MS, HEAD_TOKEN_MS = 2.0, 1e-4


class Parallel(msgspec.Struct, frozen=True):
    """Tensor and pipeline degree of one instance."""

    tp: int
    pp: int = 1

    @property
    def gpus(self) -> int:
        return self.tp * self.pp

    @property
    def name(self) -> str:
        return f"{self.tp},{self.pp}"


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated: `num_prefill` prefill and `num_decode` decode instances, or `num_prefill` colocated ones
    (`decode` None)."""

    model: str
    prefill: Parallel
    decode: Parallel | None = None
    num_prefill: int = 1
    num_decode: int = 1

    @property
    def gpus(self) -> int:
        mine = self.prefill.gpus * self.num_prefill
        return mine + (self.decode.gpus * self.num_decode if self.decode else 0)

    @property
    def engine(self) -> Engine:
        return "distserve" if self.decode else "vllm"


class Latencies(msgspec.Struct, frozen=True):
    """Of every request, in order of arrival; ms."""

    ttft_ms: NDArray[np.float64]
    tpot_ms: NDArray[np.float64]

    def attainment(self, ttft_ms: float, tpot_ms: float) -> tuple[float, float, float]:
        """Shares that meet TTFT, TPOT and both; limits inclusive."""
        if not len(self.ttft_ms):
            return 0.0, 0.0, 0.0
        first, rest = self.ttft_ms <= ttft_ms, self.tpot_ms <= tpot_ms
        return float(first.mean()), float(rest.mean()), float((first & rest).mean())


def published_rows(requests: Iterable[TraceRequest], longest: int) -> list[TraceRequest]:
    """Rows whose input and output together are at most `longest`, in the order given."""
    return [
        r
        for r in requests
        if r.prompt_len >= 1 and r.output_len >= 1 and r.prompt_len + r.output_len <= longest
    ]


def arrivals_at(requests: Sequence[TraceRequest], rate: float) -> list[float]:
    """Arrival times in ms, the first at 0: the trace's own gaps, scaled to `rate` requests a second on average."""
    span = requests[-1].at_s - requests[0].at_s
    if len(requests) < 2 or span <= 0:
        return [0.0] * len(requests)
    base = (len(requests) - 1) / span
    return [(r.at_s - requests[0].at_s) * 1e3 * base / rate for r in requests]


class _Request:
    __slots__ = ("arrived", "context", "exit", "first", "left", "output", "prompt")

    def __init__(self, prompt: int, output: int, arrived: float) -> None:
        self.prompt, self.output, self.arrived = prompt, output, arrived
        self.context = prompt
        self.left = output
        self.first = self.exit = 0.0


class _Stage:
    """One pipeline stage of an instance: what waits and what runs."""

    __slots__ = ("batch", "decode_queue", "head", "instance", "is_decode", "next", "prefill_queue", "times")

    def __init__(self, times: PublishedTimes, instance: "_Instance", head: bool) -> None:
        self.times, self.instance, self.head = times, instance, head
        self.prefill_queue: deque[_Request] = deque()
        self.decode_queue: deque[_Request] = deque()
        self.batch: list[_Request] | None = None
        self.is_decode = False
        self.next: _Stage | None = None

    def num_prefill(self) -> int:
        running = len(self.batch) if self.batch is not None and not self.is_decode else 0
        return running + len(self.prefill_queue)

    def num_decode(self) -> int:
        running = len(self.batch) if self.batch is not None and self.is_decode else 0
        return running + len(self.decode_queue)


class _Instance:
    def __init__(self, model: str, parallel: Parallel, engine: Engine) -> None:
        times = published_times(model, parallel.tp, engine)
        self.pp = parallel.pp
        self.budget = max_tokens(model, parallel.tp, parallel.pp)
        stages = [_Stage(times, self, i == 0) for i in range(parallel.pp)]
        for stage, following in itertools.pairwise(stages):
            stage.next = following
        self.head = stages[0]


class _Run:
    def __init__(self, placed: Placed) -> None:
        engine = placed.engine
        self.prefills = [_Instance(placed.model, placed.prefill, engine) for _ in range(placed.num_prefill)]
        self.decodes = (
            [_Instance(placed.model, placed.decode, engine) for _ in range(placed.num_decode)]
            if placed.decode
            else None
        )
        self.heap: list[tuple[float, int, _Stage]] = []
        self.count = 0
        self.now = 0.0

    def run(self, requests: list[_Request]) -> None:
        """Arrivals come before ends of the same instant."""
        heap = self.heap
        for request in requests:
            while heap and heap[0][0] < request.arrived:
                self._advance()
            self.now = request.arrived
            heads = [instance.head for instance in self.prefills]
            head = min(heads, key=_Stage.num_prefill) if len(heads) > 1 else heads[0]
            head.prefill_queue.append(request)
            self._start(head)
        while heap:
            self._advance()

    def _advance(self) -> None:
        self.now, _, stage = heappop(self.heap)
        batch, stage.batch = stage.batch, None
        assert batch is not None
        following = stage.next
        if stage.is_decode:
            self._decoded(stage, batch, following)
        elif following is not None:
            following.prefill_queue.extend(batch)
            self._start(following)
        else:
            self._prefilled(stage, batch)
        self._start(stage)

    def _prefilled(self, stage: _Stage, batch: list[_Request]) -> None:
        for request in batch:
            request.first = self.now
            heads = [i.head for i in self.decodes] if self.decodes is not None else [stage.instance.head]
            head = min(heads, key=_Stage.num_decode) if len(heads) > 1 else heads[0]
            head.decode_queue.append(request)
            if head is not stage:
                self._start(head)

    def _decoded(self, stage: _Stage, batch: list[_Request], following: _Stage | None) -> None:
        if following is not None:
            following.decode_queue.extend(batch)
            self._start(following)
            return
        head = stage.instance.head
        again = head.decode_queue
        for request in batch:
            request.left -= 1
            request.context += 1
            if request.left:
                again.append(request)
            else:
                request.exit = self.now
        if head is not stage:
            self._start(head)

    def _start(self, stage: _Stage) -> None:
        if stage.batch is not None:
            return
        pp = stage.instance.pp
        if stage.prefill_queue:
            batch, rest, squares = [], stage.instance.budget, 0
            queue = stage.prefill_queue
            while queue and queue[0].prompt <= rest:
                request = queue.popleft()
                rest -= request.prompt
                squares += request.prompt * request.prompt
                batch.append(request)
            if not batch:
                raise RequestError(
                    f"trace: a prompt of {queue[0].prompt} tokens is beyond the {stage.instance.budget} that an "
                    "instance holds",
                    param="trace",
                )
            tokens = stage.instance.budget - rest
            duration = stage.times.prefill_ms(tokens, squares) / pp + 1.0 * pp
            context, stage.is_decode = tokens, False
        elif stage.decode_queue:
            batch, context = self._decode_batch(stage)
            duration = stage.times.decode_ms(len(batch), context + len(batch)) / pp
            stage.is_decode = True
        else:
            return
        if stage.head:
            duration += HEAD_MS + HEAD_TOKEN_MS * context
        stage.batch = batch
        self.count += 1
        heappush(self.heap, (self.now + duration, self.count, stage))

    def _decode_batch(self, stage: _Stage) -> tuple[list[_Request], int]:
        queue = stage.decode_queue
        context = 0
        for request in queue:
            context += request.context
        if context + len(queue) <= DECODE_TOKENS:
            batch = list(queue)
            queue.clear()
            return batch, context
        batch, context = [], 0
        while queue and context + queue[0].context + len(batch) + 1 <= DECODE_TOKENS:
            request = queue.popleft()
            context += request.context
            batch.append(request)
        return batch, context


def simulate(placed: Placed, requests: Sequence[TraceRequest], arrivals_ms: Sequence[float]) -> Latencies:
    """Latencies of requests that arrive in order at `arrivals_ms`. Raises RequestError for a model, degree or layout without
    published data, and for a prompt that no instance holds."""
    ours = [_Request(r.prompt_len, r.output_len, at) for r, at in zip(requests, arrivals_ms, strict=True)]
    _Run(placed).run(ours)
    return Latencies(
        np.array([r.first - r.arrived for r in ours]),
        np.array([(r.exit - r.first) / r.output for r in ours]),
    )
