"""What all routes share while the server lives: the cluster, the text side, limits, counts, who is in
flight.
"""

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.metrics_core import Metric as Family

from mortice.cluster.api import Cluster
from mortice.obs.log import Log
from mortice.obs.metrics import Metrics, worker_families
from mortice.obs.timeline import Timeline
from mortice.obs.trace import make_tracer
from mortice.serve.bodies import Bodies
from mortice.serve.options import ServeOptions
from mortice.serve.response_store import ResponseStore
from mortice.specs.errors import NotFound, Overloaded, Unavailable
from mortice.text.service import TextService


class Edge:
    """State of one server process. Only the event loop touches it, so nothing is locked."""

    def __init__(self, cluster: Cluster, text_service: TextService, options: ServeOptions) -> None:
        self.cluster = cluster
        self.text = text_service
        self.options = options
        self.log = Log("serve")
        self.metrics = Metrics(cluster.model.name)
        self.metrics.watch_workers(_Workers(cluster))
        self.tracer = make_tracer(options.trace_endpoint)
        self.created = int(time.time())
        self.store = None if options.store is None else ResponseStore(options.store)
        self.background: dict[str, asyncio.Task[None]] = {}  # responses that run without a client, by id
        self.draining = False
        self.bodies = Bodies(options.admission.max_held_body_bytes)
        self.num_in_flight = 0  # prompts admitted and not ended
        self.timelines: dict[str, Timeline] = {}  # of requests the cluster has now, by its request id
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def admitted(self, num_prompts: int) -> Iterator[None]:
        """Hold room for so many prompts. Raises Overloaded (429) past max_queued, Unavailable (503) in a
        drain.
        """
        if self.draining:
            self.metrics.add("admission_rejections_total", 1, "draining")
            raise Unavailable("the server is draining and takes no new requests", code="draining")
        limit = self.options.admission.max_queued
        if self.num_in_flight + num_prompts > limit:
            self.metrics.add("admission_rejections_total", 1, "queue_full")
            raise Overloaded(
                f"{self.num_in_flight} requests are in flight and at most {limit} may be", code="queue_full"
            )
        self._count(num_prompts)
        try:
            yield
        finally:
            self._count(-num_prompts)

    def _count(self, change: int) -> None:
        self.num_in_flight += change
        self.metrics.set("http_requests_in_flight", self.num_in_flight)
        if self.num_in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those in flight. True if all of them ended in time."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def adapter_for(self, model: str | None) -> str | None:
        """The adapter a request's `model` names, None for the model itself. Raises NotFound for anything
        else.
        """
        info = self.cluster.model
        if model is None or model == info.name:
            return None
        if model in info.adapters:
            return model
        raise NotFound(f"the model {model!r} does not exist", param="model", code="model_not_found")

    def why_not_ready(self) -> str | None:
        """None if a new request can be admitted, else the reason."""
        if self.draining:
            return "draining"
        if not self.cluster.ready():
            states = {worker.state for worker in self.cluster.workers()}
            return "no worker can take a request: " + (", ".join(sorted(states)) or "there are none")
        if self.num_in_flight >= self.options.admission.max_queued:
            return "the queue is full"
        return None

    async def follow(self) -> None:
        """Write what happens in the cluster into the timelines of the requests in flight. Runs until
        cancelled.
        """
        async for entry in self.cluster.happenings():
            timeline = self.timelines.get(entry.request_id)
            if timeline is not None:
                timeline.mark(entry.kind, entry.t_s)

    async def close(self) -> None:
        """End background work, flush traces, close the store."""
        tasks = list(self.background.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.tracer.close()
        if self.store is not None:
            self.store.close()


class _Workers:
    """Asks the cluster for its workers' stats at each scrape."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def collect(self) -> Iterator[Family]:
        rows = [(w.role, w.state in ("running", "draining"), w.stats) for w in self._cluster.workers()]
        return worker_families(self._cluster.model.name, rows)


def new_id(prefix: str, wanted: str | None = None) -> str:
    """An id that nobody else has; `wanted` stands in it so that its owner finds it again."""
    return f"{prefix}-{wanted}-{secrets.token_hex(4)}" if wanted else f"{prefix}-{secrets.token_hex(12)}"
