"""The page at `/` and the feed it draws from.

While nobody watches, a request costs one entry in a ring of latencies. Everything else is computed for a
watcher when it is sent. No prompt and no answer passes through here.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files

import msgspec

from mortice.cluster.api import Division, Happening, Turn, WorkerInfo
from mortice.obs.metrics import PREFIX, Metrics
from mortice.obs.timeline import Timeline
from mortice.obs.trace import Ended, Tracer
from mortice.serve.edge import Edge
from mortice.serve.errors import Headers
from mortice.serve.guard import check_admin
from mortice.serve.json_text import as_json
from mortice.serve.link import SSE, Link
from mortice.serve.options import Page, ServeOptions
from mortice.specs.errors import NotFound, Overloaded

Row = tuple[str, Callable[[Edge, Link], Awaitable[None]], Callable[[Link, ServeOptions], None] | None]

TICK_S = 0.1  # happenings are sent this often at most
OVERVIEW_S = 0.5
RATE_S = 3.0  # tokens/s is a mean over this long
KEEP_LATENCIES = 512  # requests whose TTFT and TPOT are remembered
KEEP_HAPPENINGS = 256  # a watcher who is further behind loses the oldest
MAX_FLIGHTS = 256  # requests an overview names
MAX_WATCHERS = 16

_TYPES = {
    "index.html": b"text/html; charset=utf-8",
    "page.css": b"text/css; charset=utf-8",
    "page.js": b"text/javascript; charset=utf-8",
}
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_POLICY_OF_PAGES = (
    b"default-src 'none'; style-src 'unsafe-inline'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Latency(msgspec.Struct, frozen=True, array_like=True):
    """Of one request that ended well, in milliseconds. On the wire: [ttft, tpot]."""

    ttft_ms: float
    tpot_ms: float | None  # (end - first token) / (tokens of a sequence - 1); None for answers of one token


class WorkerView(msgspec.Struct, frozen=True):
    """What the page shows of a worker. `place` outlives its workers: `prefill-0` of `prefill-0.3`."""

    id: str
    place: str
    role: str
    state: str
    pid: int
    host: str
    running: int
    waiting: int
    pulling: int
    blocks: int
    free_blocks: int
    leased_blocks: int
    weight_version: int


class RolesView(msgspec.Struct, frozen=True, kw_only=True):
    """Who wears what. `turns` are those of the control loop since the last overview of this watcher, oldest first."""

    policy: str
    division: Division
    starting: int
    draining: int
    ttft_ms: float | None  # what the policy works for
    tpot_ms: float | None
    turns: list[Turn]


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The event `overview`. `latencies` are those since the last overview of this watcher, oldest first."""

    model: str
    max_context: int
    state: str  # ready, or why no request can be admitted
    uptime_s: int
    workers: list[WorkerView]
    num_in_flight: int
    flights: list[tuple[str, str]]  # (request id, queue | prefill | decode)
    tokens_per_s: float
    num_finished: int
    num_failed: int
    num_tokens: int  # given out since the start
    latencies: list[Latency]
    roles: RolesView
    pages: list[tuple[str, str]]  # (title, path) of what else there is to see


class Recent:
    """A tracer that remembers the latencies of the last requests and passes everything on."""

    def __init__(self, tracer: Tracer) -> None:
        self.num_finished = 0
        self.num_failed = 0
        self._latencies: deque[Latency] = deque(maxlen=KEEP_LATENCIES)
        self._tracer = tracer

    def record(self, ended: Ended) -> None:
        if ended.error is None and ended.timeline.first_token_s:
            self.num_finished += 1
            self._latencies.append(latency_of(ended))
        else:
            self.num_failed += 1
        self._tracer.record(ended)

    def close(self) -> None:
        self._tracer.close()

    def since(self, num_seen: int) -> list[Latency]:
        """Those of requests `num_seen` and later that are still remembered."""
        new = min(self.num_finished - num_seen, len(self._latencies))
        return list(self._latencies)[len(self._latencies) - new :]


def latency_of(ended: Ended) -> Latency:
    timeline = ended.timeline
    num_after_first = ended.completion_tokens / max(1, len(ended.finish_reasons)) - 1
    tpot_s = (timeline.end_s - timeline.first_token_s) / num_after_first if num_after_first > 0 else None
    return Latency(
        round((timeline.first_token_s - timeline.arrival_s) * 1000, 2),
        None if tpot_s is None else round(tpot_s * 1000, 3),
    )


def routes(edge: Edge) -> list[Row]:
    """(path, handler, guard) of the page, its files and its feed. To be called once an edge: from then on
    `edge.tracer` remembers latencies too.
    """
    recent = Recent(edge.tracer)
    edge.tracer = recent
    num_watchers = 0

    @contextmanager
    def watching() -> Iterator[None]:
        nonlocal num_watchers
        if num_watchers >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} dashboards are open already", code="too_many_watchers")
        num_watchers += 1
        try:
            yield
        finally:
            num_watchers -= 1

    async def feed(edge: Edge, link: Link) -> None:
        with watching():
            await _send_feed(link, _Watcher(edge, recent))

    pages: list[Row] = [(page.path, _drawn(page), check_admin) for page in edge.options.pages]
    return [("/", _index, None), ("/page/{file}", _file, None), ("/admin/feed", feed, check_admin), *pages]


def _drawn(page: Page) -> Callable[[Edge, Link], Awaitable[None]]:
    async def handle(edge: Edge, link: Link) -> None:
        text = await page.draw(dict(link.scope["path_params"]))
        headers = _headers(_TYPES["index.html"], _POLICY_OF_PAGES)
        await link.answer(text.encode("utf-8", "replace"), headers=headers)

    return handle


async def _index(edge: Edge, link: Link) -> None:
    await _send_file(link, "index.html")


async def _file(edge: Edge, link: Link) -> None:
    name = link.scope["path_params"]["file"]
    if name not in _TYPES:
        raise NotFound(f"the page has no file {name[:100]!r}")
    await _send_file(link, name)


async def _send_file(link: Link, name: str) -> None:
    await link.answer(_read(name), headers=_headers(_TYPES[name], _POLICY))


def _headers(content_type: bytes, policy: bytes) -> Headers:
    return [
        (b"content-type", content_type),
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", policy),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]


@cache
def _read(name: str) -> bytes:
    return (files("mortice.serve") / "page" / name).read_bytes()


async def _send_feed(link: Link, watcher: "_Watcher") -> None:
    """Server-sent events until the client hangs up or takes nothing for `stall_s`.

    A slow client blocks only this loop: what happens meanwhile waits in a ring that forgets the oldest.
    """
    listening = asyncio.create_task(watcher.listen())
    try:
        await link.start(200, SSE)
        overview_at = 0.0
        while not listening.done():
            data = watcher.happened()
            now = time.monotonic()
            if now >= overview_at:
                overview_at = now + OVERVIEW_S
                data += _event("overview", watcher.overview(now))
            if data:
                async with asyncio.timeout(watcher.edge.options.stall_s):
                    await link.body(data, more=True)
            await asyncio.sleep(TICK_S)
        listening.result()
    except TimeoutError:
        watcher.edge.log.info("a dashboard took nothing", request_id=link.request_id)
    finally:
        listening.cancel()


def _event(name: str, value: Overview | Happening) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), as_json(value))


class _Watcher:
    """What one open page has been told and what it has still to be told."""

    def __init__(self, edge: Edge, recent: Recent) -> None:
        self.edge = edge
        self._recent = recent
        self._num_seen = 0
        self._turns_until_s = -1.0
        self._pending: deque[Happening] = deque(maxlen=KEEP_HAPPENINGS)
        self._counts: deque[tuple[float, int]] = deque()  # (time.monotonic(), tokens given out until then)

    async def listen(self) -> None:
        async for entry in self.edge.cluster.happenings():
            self._pending.append(entry)

    def happened(self) -> bytes:
        """Events of what happened since the last call."""
        data = b"".join(_event("happening", entry) for entry in self._pending)
        self._pending.clear()
        return data

    def overview(self, now: float) -> Overview:
        edge, recent = self.edge, self._recent
        num_tokens = count_tokens(edge.metrics)
        latencies = recent.since(self._num_seen)
        self._num_seen = recent.num_finished
        return Overview(
            model=edge.cluster.model.name,
            max_context=edge.cluster.model.max_context,
            state=edge.why_not_ready() or "ready",
            uptime_s=int(time.time()) - edge.created,
            workers=[view_of(worker) for worker in edge.cluster.workers()],
            num_in_flight=edge.num_in_flight,
            flights=[(name, stage_of(line)) for name, line in list(edge.timelines.items())[:MAX_FLIGHTS]],
            tokens_per_s=round(self._rate(now, num_tokens), 1),
            num_finished=recent.num_finished,
            num_failed=recent.num_failed,
            num_tokens=num_tokens,
            latencies=latencies,
            roles=self._roles(),
            pages=[(page.title, page.path) for page in edge.options.pages if page.title],
        )

    def _roles(self) -> RolesView:
        roles = self.edge.cluster.roles()
        turns = [turn for turn in roles.turns if turn.t_s > self._turns_until_s]
        self._turns_until_s = turns[-1].t_s if turns else self._turns_until_s
        return RolesView(
            policy=roles.policy,
            division=roles.division,
            starting=roles.starting,
            draining=roles.draining,
            ttft_ms=roles.ttft_ms,
            tpot_ms=roles.tpot_ms,
            turns=turns,
        )

    def _rate(self, now: float, num_tokens: int) -> float:
        counts = self._counts
        counts.append((now, num_tokens))
        while len(counts) > 2 and counts[1][0] <= now - RATE_S:
            counts.popleft()
        begun, before = counts[0]
        return (num_tokens - before) / (now - begun) if now > begun else 0.0


def count_tokens(metrics: Metrics) -> int:
    """Output tokens seen at the edge so far: a first token a request, and one an observed interval.

    Unlike `generation_tokens_total` this moves while requests run.
    """
    names = [
        f"{PREFIX}{name}_count" for name in ("time_to_first_token_seconds", "inter_token_latency_seconds")
    ]
    families = metrics.registry.restricted_registry(names).collect()
    return int(sum(sample.value for family in families for sample in family.samples))


def stage_of(timeline: Timeline) -> str:
    """Where a request in flight is, as far as the edge knows."""
    if timeline.first_token_s or timeline.handoff_s or timeline.decode_s:
        return "decode"
    return "prefill" if timeline.prefill_s else "queue"


def view_of(worker: WorkerInfo) -> WorkerView:
    place, dot, life = worker.id.rpartition(".")
    stats = worker.stats
    return WorkerView(
        id=worker.id,
        place=place if dot and life.isdigit() else worker.id,
        role=worker.role,
        state=worker.state,
        pid=worker.pid,
        host=worker.host,
        running=stats.num_running if stats else 0,
        waiting=stats.num_waiting if stats else 0,
        pulling=stats.num_pulling if stats else 0,
        blocks=stats.num_blocks if stats else 0,
        free_blocks=stats.num_free_blocks if stats else 0,
        leased_blocks=stats.num_leased_blocks if stats else 0,
        weight_version=stats.weight_version if stats else 0,
    )
