"""The fakes we ship: a clock that moves when told to, and a cluster that needs no model.

Our own tests use them, and so can the tests of whoever builds on `serve` or `cluster.api`. No torch, no
sockets.
"""

import asyncio
import heapq
import itertools
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from mortice.cluster.api import Division, Happening, ModelInfo, Role, Roles, Turn, WorkerInfo
from mortice.specs.errors import MorticeError, NotFound, RequestError, Unavailable, WrongState
from mortice.specs.messages import WorkerStats
from mortice.specs.request import Delta, FinishReason, Request, TokenLogprob


class FakeClock:
    """Seconds that pass only through `advance`. Call it like `time.monotonic`; it sleeps like `asyncio`."""

    def __init__(self, start_s: float = 0.0) -> None:
        self.now_s = start_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass; sleepers whose time has come wake in the order of their deadlines."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self.now_s += seconds
        while self._sleepers and self._sleepers[0][0] <= self.now_s:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._order), future))
        await future


Script = Callable[[Request, int], Sequence[int]]
"""(request, index of the sequence) -> the tokens this sequence would say if nothing ended it earlier."""


def echo(request: Request, index: int) -> list[int]:
    """Say the prompt again and again, each sequence starting one token later; never ends by itself."""
    prompt = request.prompt_token_ids or [0]
    wanted = request.sampling.max_tokens
    return [prompt[(index + i) % len(prompt)] for i in range(wanted)]


def fixed(token_ids: Sequence[int]) -> Script:
    """Say these tokens and then the end-of-sequence token, whatever the prompt."""
    return lambda request, index: token_ids


class FakeCluster:
    """`cluster.api.Cluster` with scripted answers: one prefill and one decode worker that do not exist.

    Settings may be changed between requests:
      script            what sequences say (`echo`, `fixed(ids)` or your own); after its last token comes EOS
      tokens_per_delta  tokens a delta carries
      first_token_s, pace_s   waits before the first and before each later round of deltas, by `sleep`
      failures          errors that the next requests raise at once, one each, in order
      fail_after        (tokens, error): every request raises this error after so many tokens; None: never
      error_delta_after every sequence ends with finish_reason "error" after so many tokens; None: never
    What happened stands in:
      requests          every request, in order of arrival
      cancelled         ids of requests whose iterator was closed before they ended
      ended             (request id, index) of sequences that `end_sequence` ended
      calls             (verb, args, worker_id) of every admin call
      worn              role by worker, as `wear` and `divide` left it
      turns             what `roles` shows of the control loop; a test fills it
    """

    def __init__(
        self,
        *,
        name: str = "fake",
        max_context: int = 2048,
        vocab_size: int = 49152,
        eos_token_ids: Sequence[int] = (2,),
        adapters: Sequence[str] = (),
        script: Script = echo,
        tokens_per_delta: int = 1,
        first_token_s: float = 0.0,
        pace_s: float = 0.0,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self.model = ModelInfo(
            name=name,
            max_context=max_context,
            vocab_size=vocab_size,
            eos_token_ids=list(eos_token_ids),
            adapters=list(adapters),
            weight_version=1,
        )
        self.script = script
        self.tokens_per_delta = tokens_per_delta
        self.first_token_s = first_token_s
        self.pace_s = pace_s
        self.failures: deque[MorticeError] = deque()
        self.fail_after: tuple[int, MorticeError] | None = None
        self.error_delta_after: int | None = None
        self.requests: list[Request] = []
        self.cancelled: list[str] = []
        self.ended: list[tuple[str, int]] = []
        self.calls: list[tuple[str, dict[str, Any], str | None]] = []
        self.worn: dict[str, str] = {"prefill-0": "prefill", "decode-0": "decode"}
        self.turns: list[Turn] = []
        self.state = "starting"
        self._sleep = sleep
        self._running: set[str] = set()
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._feeds: set[asyncio.Queue[Happening]] = set()
        self._generated = 0

    async def start(self) -> None:
        self.state = "running"

    async def stop(self, drain_s: float) -> None:
        self.state = "draining"
        deadline = time.monotonic() + drain_s
        while self._running and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self.state = "dead"

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        self._admit(request)
        self.requests.append(request)
        self._running.add(request.id)
        self.happen("queued", request.id, num_tokens=len(request.prompt_token_ids))
        ended = False
        try:
            num_tokens = len(request.prompt_token_ids)
            self.happen("route", request.id, worker_id="prefill-0")
            await self._sleep(self.first_token_s)
            self.happen("prefill", request.id, worker_id="prefill-0", num_tokens=num_tokens)
            self.happen(
                "handoff", request.id, worker_id="prefill-0", peer_id="decode-0", num_tokens=num_tokens
            )
            self.happen("decode", request.id, worker_id="decode-0")
            sequences = [
                _Sequence(request, i, self.script(request, i), self.model.eos_token_ids)
                for i in range(request.n)
            ]
            told = 0
            while live := [s for s in sequences if not s.done]:
                if told:
                    await self._sleep(self.pace_s)
                await self._resumed.wait()
                if self.fail_after and told >= self.fail_after[0]:
                    raise self.fail_after[1]
                for sequence in live:
                    if (request.id, sequence.index) in self.ended:
                        sequence.done = True
                        ended = all(s.done for s in sequences)
                        yield Delta(request.id, sequence.index, [], finish_reason="abort")
                        continue
                    delta = sequence.step(
                        self.tokens_per_delta, self.model.weight_version, self.error_delta_after
                    )
                    self._generated += len(delta.token_ids)
                    ended = all(s.done for s in sequences)
                    yield delta
                told += self.tokens_per_delta
            ended = True
        finally:
            self._running.discard(request.id)
            if not ended:
                self.cancelled.append(request.id)
            self.happen("finish" if ended else "abort", request.id, worker_id="decode-0")

    def _admit(self, request: Request) -> None:
        if self.failures:
            raise self.failures.popleft()
        if self.state in ("asleep", "updating"):
            raise WrongState(f"the engine is {self.state}")
        if self.state not in ("running", "paused"):
            raise Unavailable(f"no worker can take the request: the cluster is {self.state}")
        if len(request.prompt_token_ids) >= self.model.max_context:
            raise RequestError(
                "the prompt does not fit a pool", param="prompt", code="context_length_exceeded"
            )
        if request.adapter is not None and request.adapter not in self.model.adapters:
            raise NotFound(f"no adapter named {request.adapter!r}", param="model")

    def end_sequence(self, request_id: str, index: int) -> None:
        if request_id in self._running:
            self.ended.append((request_id, index))

    def num_in_flight(self) -> int:
        return len(self._running)

    def ready(self) -> bool:
        return self.state == "running"

    def workers(self) -> list[WorkerInfo]:
        def worker(name: str, role: str) -> WorkerInfo:
            stats = WorkerStats(
                worker_id=name,
                state=self.state,
                num_running=len(self._running) if role == "decode" else 0,
                num_free_blocks=1024,
                num_blocks=1024,
                weight_version=self.model.weight_version,
                counters={"generation_tokens_total": float(self._generated)} if role == "decode" else {},
                adapters=self.model.adapters,
            )
            return WorkerInfo(id=name, role=role, pid=os.getpid(), state=self.state, stats=stats)

        return [worker(name, role) for name, role in self.worn.items()]

    def roles(self) -> Roles:
        worn = list(self.worn.values())
        return Roles(
            policy="static",
            division=Division(worn.count("prefill"), worn.count("decode"), worn.count("mixed")),
            starting=0,
            draining=0,
            most_workers=None,
            ttft_ms=2000.0,
            tpot_ms=80.0,
            period_s=10.0,
            workers=self.workers(),
            turns=self.turns,
        )

    def wear(self, worker_id: str, role: Role) -> None:
        if worker_id not in self.worn:
            raise NotFound(f"no worker named {worker_id!r}", param="worker_id")
        if set({**self.worn, worker_id: role}.values()) == {"prefill"}:
            raise WrongState("somebody has to decode")
        before, self.worn[worker_id] = self.worn[worker_id], role
        self.happen("role", worker_id=worker_id, detail=f"{before} to {role}")

    def divide(self, division: Division) -> None:
        wanted = ["prefill"] * division.prefill + ["decode"] * division.decode + ["mixed"] * division.mixed
        if len(wanted) != len(self.worn):
            raise RequestError(f"there are {len(self.worn)} workers to divide", param="prefill")
        if set(wanted) == {"prefill"}:
            raise WrongState("somebody has to decode")
        self.worn = dict(zip(self.worn, wanted, strict=True))

    async def call(self, verb: str, args: dict[str, Any], worker_id: str | None = None) -> dict[str, dict]:
        self.calls.append((verb, args, worker_id))
        ids = [worker.id for worker in self.workers()]
        if worker_id is not None and worker_id not in ids:
            raise NotFound(f"no worker named {worker_id!r}", param="worker_id")
        self._apply(verb, args)
        return {name: {"ok": True} for name in ids if worker_id in (None, name)}

    def _apply(self, verb: str, args: dict[str, Any]) -> None:
        moves = {"pause": ("running", "paused"), "resume": ("paused", "running")}
        moves |= {"sleep": ("running", "asleep"), "wake": ("asleep", "running")}
        if verb in moves:
            before, after = moves[verb]
            if self.state == after:
                return
            if self.state != before:
                raise WrongState(f"cannot {verb} while {self.state}")
            self.state = after
            if after == "paused":
                self._resumed.clear()
            else:
                self._resumed.set()
        elif verb == "update_weights":
            self._change(weight_version=int(args["version"]))
        elif verb == "load_adapter":
            self._change(adapters=[*self.model.adapters, args["name"]])
        elif verb == "unload_adapter":
            if args["name"] not in self.model.adapters:
                raise NotFound(f"no adapter named {args['name']!r}", param="lora_name")
            self._change(adapters=[a for a in self.model.adapters if a != args["name"]])
        elif verb not in ("reset_prefix_cache", "check_integrity"):
            raise RequestError(f"no such verb: {verb}", param="verb")

    def _change(self, **fields: Any) -> None:
        self.model = msgspec.structs.replace(self.model, **fields)

    def happen(self, kind: str, request_id: str = "", **fields: Any) -> None:
        """Put an entry on every live feed; a full feed loses its oldest."""
        entry = Happening(t_s=time.time(), kind=kind, request_id=request_id, **fields)
        for feed in self._feeds:
            if feed.full():
                feed.get_nowait()
            feed.put_nowait(entry)

    async def happenings(self) -> AsyncIterator[Happening]:
        feed: asyncio.Queue[Happening] = asyncio.Queue(maxsize=256)
        self._feeds.add(feed)
        try:
            while True:
                yield await feed.get()
        finally:
            self._feeds.discard(feed)


class _Sequence:
    """One scripted sequence and how far it has come."""

    def __init__(self, request: Request, index: int, script: Sequence[int], eos: Sequence[int]) -> None:
        self.request = request
        self.index = index
        self.done = False
        ends = set(request.sampling.stop_token_ids) | (set() if request.sampling.ignore_eos else set(eos))
        self._ends = ends
        self._script = itertools.chain(script, itertools.repeat(eos[0] if eos else 0))
        self._told = 0

    def step(self, num_tokens: int, weight_version: int, error_after: int | None) -> Delta:
        """The next `num_tokens` tokens, fewer where the sequence ends."""
        sampling = self.request.sampling
        token_ids: list[int] = []
        finish: FinishReason | None = None
        stop_token_id: int | None = None
        error: str | None = None
        first = self._told == 0
        while len(token_ids) < num_tokens and finish is None:
            if error_after is not None and self._told >= error_after:
                finish, error = "error", "the worker failed while it served the request"
                break
            token_id = next(self._script)
            token_ids.append(token_id)
            self._told += 1
            if token_id in self._ends and self._told >= sampling.min_tokens:
                finish, stop_token_id = "stop", token_id
            elif self._told >= sampling.max_tokens:
                finish = "length"
        self.done = finish is not None
        wanted = sampling.prompt_logprobs
        return Delta(
            request_id=self.request.id,
            index=self.index,
            token_ids=token_ids,
            weight_version=weight_version,
            finish_reason=finish,
            stop_token_id=stop_token_id,
            logprobs=None
            if sampling.logprobs is None
            else [_logprob(t, sampling.logprobs) for t in token_ids],
            prompt_logprobs=None
            if wanted is None or not first
            else [None, *(_logprob(t, wanted) for t in self.request.prompt_token_ids[1:])],
            error=error,
        )


def _logprob(token_id: int, top: int) -> TokenLogprob:
    """A made-up distribution: the token itself is best, its successors follow at halves."""
    ranked = [(token_id + i, -0.5 - i) for i in range(top)]
    return TokenLogprob(token_id=token_id, logprob=-0.5, rank=1, top=ranked)
