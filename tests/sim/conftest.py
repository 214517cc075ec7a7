"""Two prefill and two decode engines on the fake model, the cluster's traffic between them, and a network that a
test drives one message at a time.

Engines and traffic are those of the live cluster. Memory moves through `MemoryFabric`, one block a step. Order holds
on every channel but for lease words (renew, release, push orders and their results), which may overtake, be told twice
and, the first two, be lost. A worker that crashes takes its memory with it; the cluster notices later, its peers
later still, and what it had already sent may yet arrive. In map mode pools are shared memory, and blocks that were lent
outlive their owner.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mortice.cluster.decisions import Decisions
from mortice.cluster.flight import Flight
from mortice.cluster.kv_connector import KVConnector
from mortice.cluster.request_router import RequestRouter
from mortice.engine.assemble import assemble, layout_of
from mortice.engine.core import Engine
from mortice.engine.sampler import draw
from mortice.models.fake import FakeModel, _fingerprints
from mortice.sched import events
from mortice.sched.plane import Setup
from mortice.sched.prefix_map import block_names
from mortice.sched.recovery import MAX_ATTEMPTS
from mortice.specs.deployment import Deployment, EngineLimits, Transfer
from mortice.specs.errors import MorticeError
from mortice.specs.kv import KVLayout
from mortice.specs.messages import (
    FromWorker,
    LeaseRelease,
    LeaseRenew,
    PeerGone,
    Pushed,
    PushTarget,
    ToWorker,
    decode_from_worker,
    decode_to_worker,
    encode,
)
from mortice.specs.request import Delta, Request
from mortice.testing import FakeClock
from mortice.transport.memory import Faults, MemoryFabric, MemoryTransport
from mortice.transport.pool import PrivatePool, SharedPool

BLOCK = 4
LEASE_WORDS = (LeaseRenew, LeaseRelease, PushTarget, Pushed)
MAY_BE_LOST = (LeaseRenew, LeaseRelease)


class Fabric(MemoryFabric):
    """Knows which worker started a transfer, so that its transfers die with it."""

    def __init__(self, seed: int, faults: Faults) -> None:
        super().__init__(seed, faults)
        self.acting: Worker | None = None
        self._by: list[tuple[Any, Worker | None]] = []

    def start(self, transfer: Any) -> None:
        self._by.append((transfer, self.acting))
        super().start(transfer)

    def crash(self, worker: "Worker") -> None:
        self.kill(worker.pool.address.pool_id)
        for transfer, by in self._by:
            if by is worker and transfer in self._under_way:
                self._under_way.remove(transfer)
                transfer.steps.close()


@dataclass(eq=False)
class Worker:
    """One life at one place."""

    place: str
    life: int
    engine: Engine
    pool: PrivatePool | SharedPool
    inbox: list[bytes] = field(default_factory=list)
    outbox: list[bytes] = field(default_factory=list)
    is_alive: bool = True
    is_buried: bool = False  # the cluster knows that it is dead

    @property
    def worker_id(self) -> str:
        return f"{self.place}.{self.life}"


class World:
    """Implements `cluster.request_router.Crew`."""

    def __init__(self, *, mode: str, seed: int, num_blocks: dict[str, int], faults: Faults) -> None:
        torch.set_num_threads(1)
        self.clock = FakeClock()
        self.random = random.Random(seed)
        self.fabric = Fabric(seed, faults)
        self.deployment = Deployment(
            model="fake:",
            limits=EngineLimits(block_size=BLOCK, token_budget=16, max_num_seqs=6),
            transfer=Transfer(mode=mode, checksum="full"),
        )
        self.num_blocks = num_blocks
        self.decisions = Decisions(Setup(block_size=BLOCK, local_prefill_tokens=3), clock=self.clock)
        self.connector = KVConnector(self)
        self.traffic = RequestRouter(self.decisions, self.connector, self)
        self.roles: dict[str, str] = {place: place.partition("-")[0] for place in num_blocks}
        self.workers: dict[str, Worker] = {}
        self.expected: dict[str, list[list[int]]] = {}
        self.failed: dict[str, MorticeError] = {}
        self.cancelled: set[str] = set()
        self.ended: set[tuple[str, int]] = set()
        self.num_closed = 0
        for place in num_blocks:
            self.start(place)

    # -- what the cluster's traffic asks of its crew ------------------------------------------------------------

    def send(self, worker_id: str, message: ToWorker) -> bool:
        worker = self.workers.get(worker_id.rpartition(".")[0])
        if worker is None or worker.worker_id != worker_id or worker.is_buried:
            return False
        worker.inbox.append(encode(message))
        return True

    def can_decode(self) -> bool:
        return True

    def tell(self, kind: str, flight: Flight, **what: Any) -> None:
        """Nobody watches."""

    # -- the edge -----------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        self.expected[request.id] = [reference(request, index) for index in range(request.n)]
        names = block_names(request, model="fake", weight_version=0, block_size=BLOCK)
        flight: Flight

        def hear(item: Delta | MorticeError) -> None:
            if isinstance(item, MorticeError):
                assert flight.num_attempts >= MAX_ATTEMPTS, item
                self.failed[request.id] = item
            else:
                assert item.error is None, item
                given, expected = flight.given[item.index], self.expected[request.id][item.index]
                assert given == expected[: len(given)], f"{request.id}[{item.index}] went astray"
                if item.finish_reason == "abort":
                    assert (request.id, item.index) in self.ended
                elif item.finish_reason is not None:
                    assert given == expected, f"{request.id}[{item.index}] ended early"

        flight = Flight(request, names, hear)
        self.traffic.open(flight)

    def cancel(self, request_id: str) -> None:
        (flight,) = [f for f in self.traffic.flights() if f.request.id == request_id]
        self.cancelled.add(request_id)
        self.traffic.close(flight)
        self.num_closed += 1

    def end_sequence(self, request_id: str, index: int) -> None:
        """What the edge says when a text has met its stop string. Its first token must be out."""
        (flight,) = [f for f in self.traffic.flights() if f.request.id == request_id]
        if flight.given[index] and index not in flight.finished:
            self.ended.add((request_id, index))
            self.traffic.end_sequence(request_id, index)
            self.hang_up()

    def hang_up(self) -> None:
        """The edge closes what is over."""
        for flight in self.traffic.flights():
            if flight.is_over:
                self.traffic.close(flight)
                self.num_closed += 1

    # -- workers ------------------------------------------------------------------------------------------------

    def start(self, place: str) -> None:
        """The first or another life at this place."""
        life = 1
        if place in self.workers:
            self.workers[place].pool.close()
            life += self.workers[place].life
        model = FakeModel()
        layout = layout_of(model, block_size=BLOCK, dtype="float32", identity="fake")
        pool = make_pool(layout, self.num_blocks[place], shared=self.deployment.transfer.mode == "map")
        engine = assemble(
            model,
            layout,
            pool,
            MemoryTransport(self.fabric, pool),
            self.deployment,
            worker_id=f"{place}.{life}",
            eos_token_ids=list(FakeModel.eos_token_ids),
            max_context=self.num_blocks[place] * BLOCK,
            load_tokenizer=lambda: None,
            wake=lambda: None,
            device=torch.device("cpu"),
            clock=self.clock,
        )
        self.workers[place] = Worker(place, life, engine, pool)
        now = self.decisions.now()
        self.decisions.hear(events.Joined(now, f"{place}.{life}", self.roles[place], self.num_blocks[place]))
        self.traffic.retry_held()

    def flip(self, place: str) -> None:
        """Give a worker the other coat, unless nobody would be left to decode."""
        role = "decode" if self.roles[place] == "prefill" else "prefill"
        if role == "prefill" and sum(r == "decode" for r in self.roles.values()) < 2:
            return
        self.roles[place] = role
        worker = self.workers[place]
        if not worker.is_buried:
            self.decisions.hear(events.Worn(self.decisions.now(), worker.worker_id, role))
            self.traffic.retry_held()

    def close(self) -> None:
        for worker in self.workers.values():
            worker.pool.close()

    def crash(self, place: str) -> None:
        worker = self.workers[place]
        worker.is_alive = False
        self.fabric.crash(worker)

    def notice(self, place: str) -> None:
        """The cluster sees that this worker is dead; from here on its last words are ignored."""
        worker = self.workers[place]
        worker.is_buried = True
        self.decisions.hear(events.Left(self.decisions.now(), worker.worker_id))
        for other in self.workers.values():
            self.send(other.worker_id, PeerGone(worker.pool.address.pool_id))
        self.traffic.worker_left(worker.worker_id)
        self.hang_up()  # of those that were given up

    def _act(self, worker: Worker, words: Callable[[], list[FromWorker]]) -> None:
        self.fabric.acting = worker
        worker.outbox += [encode(message) for message in words()]

    def turn(self, place: str) -> None:
        """One turn of this worker's loop, what has come in aside."""
        worker = self.workers[place]
        if worker.is_alive:
            self._act(worker, worker.engine.collect)
            self._act(worker, lambda: worker.engine.step()[1])

    def heartbeat(self, place: str) -> None:
        worker = self.workers[place]
        if worker.is_alive:
            self._act(worker, worker.engine.heartbeats)

    # -- the network --------------------------------------------------------------------------------------------

    def deliver(self, place: str, *, inward: bool, mishap: str = "") -> None:
        """One message to (inward) or from this worker: the oldest, or with a mishap some lease word out of turn, which
        is told early (`overtake`), told now and again (`twice`), or never (`lose`)."""
        worker = self.workers[place]
        box = worker.inbox if inward else worker.outbox
        where = 0
        if mishap:
            kinds = MAY_BE_LOST if mishap == "lose" else LEASE_WORDS
            read: Callable[[bytes], Any] = decode_to_worker if inward else decode_from_worker
            words = [i for i, data in enumerate(box) if isinstance(read(data), kinds)]
            if not words:
                return
            where = self.random.choice(words)
        if not box:
            return
        data = box[where] if mishap == "twice" else box.pop(where)
        if mishap == "lose":
            return
        if inward:
            if worker.is_alive:
                self._act(worker, lambda: worker.engine.hear(decode_to_worker(data)))
        elif not worker.is_buried:
            word = decode_from_worker(data)
            if isinstance(word, LEASE_WORDS):
                self.traffic.leases_over(self.connector.hear(worker.worker_id, word))
            else:
                self.traffic.hear(worker.worker_id, word)  # type: ignore[arg-type]
            self.hang_up()

    def move_blocks(self, count: int) -> None:
        for _ in range(count):
            self.fabric.step()

    def bustle(self, count: int) -> None:
        """So many small things happen, drawn by lot."""
        for _ in range(count):
            place = self.random.choice(list(self.workers))
            lot = self.random.random()
            if lot < 0.25:
                self.turn(place)
            elif lot < 0.5:
                self.move_blocks(self.random.randint(1, 4))
            elif lot < 0.9:
                self.deliver(place, inward=self.random.random() < 0.5)
            elif lot < 0.97:
                mishap = self.random.choice(["overtake", "twice", "lose"])
                self.deliver(place, inward=self.random.random() < 0.5, mishap=mishap)
            else:
                self.heartbeat(place)

    # -- what must hold -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """What must hold at every moment."""
        assert len(self.traffic) + self.num_closed == len(self.expected), "a request is lost"
        for worker in self.workers.values():
            if worker.is_alive:
                check_worker(worker)

    def beat(self) -> None:
        self.clock.advance(self.deployment.transfer.heartbeat_s)
        for place in self.workers:
            self.heartbeat(place)

    def mend(self) -> None:
        for place, worker in self.workers.items():
            if not worker.is_alive:
                if not worker.is_buried:
                    self.notice(place)
                self.start(place)

    def drain(self) -> None:
        """Every crash is noticed and mended, every message comes, and time passes: nothing may be left anywhere."""
        self.mend()
        for turn in range(600):
            if turn % 10 == 9:  # a lease whose release was lost holds its blocks until it is over
                self.beat()
            for place, worker in self.workers.items():
                while worker.inbox:
                    self.deliver(place, inward=True)
                self.turn(place)
                while worker.outbox:
                    self.deliver(place, inward=False)
            self.fabric.run()
            self.check()
            if not len(self.traffic) and not any(busy(w.engine) for w in self.workers.values()):
                break
        else:
            stuck = {f.request.id: (f.stage, f.worker_id, f.given) for f in self.traffic.flights()}
            raise AssertionError(f"it never comes to rest: {stuck}")
        for dt in (0.0, self.deployment.transfer.lease_s + 1):
            self.clock.advance(dt)
            for place, worker in self.workers.items():
                self.heartbeat(place)
                assert not worker.outbox, f"{place} renews leases that nobody needs: {worker.outbox}"
        for worker in self.workers.values():
            engine = worker.engine
            engine.check_integrity()
            assert not len(engine.handoff.leases), f"{worker.place} keeps leases"
            assert engine.pool.num_free == engine.pool.num_blocks, f"{worker.place} keeps blocks"
            assert not engine._decoding, f"{worker.place} remembers sequences"
            assert not engine.handoff._pushes, f"{worker.place} believes that it pushes"
            assert not engine.handoff._loans, f"{worker.place} believes that it reads from others"


def make_pool(layout: KVLayout, num_blocks: int, *, shared: bool) -> PrivatePool | SharedPool:
    if shared:
        return SharedPool(layout, num_blocks, prefix="mortice-sim", checksum="full")
    return PrivatePool(layout, num_blocks, checksum="full")


def busy(engine: Engine) -> bool:
    return engine.has_work or bool(engine.scheduler.fetching) or bool(engine.handoff._pushes)


def check_worker(worker: Worker) -> None:
    engine = worker.engine
    engine.check_integrity()
    scheduler, pool = engine.scheduler, engine.pool
    fetching = {b for a in scheduler.fetching.values() for b in a.blocks[a.num_skip :]}
    used = {b for s in scheduler.running for b in s.blocks}
    assert not fetching & used, f"{worker.place} computes on blocks that are still being fetched"
    assert not fetching & set(engine.handoff.leases.held_blocks()), f"{worker.place} lends what it fetches"
    assert all(pool.refs(b) == 1 for b in fetching)
    landing = worker.pool.landing._blocks
    assert landing <= fetching, f"{worker.place}: blocks {landing - fetching} are written from outside"
    for sequence in scheduler.running:
        assert len(sequence.blocks) * BLOCK >= sequence.num_computed
        assert sequence.num_computed <= len(sequence.token_ids)
    waiting_or_running = list(scheduler.sequences())
    assert len(set(map(id, waiting_or_running))) == len(waiting_or_running), "a sequence stands in two queues"
    assert set(engine._decoding) == set(waiting_or_running), "a sequence is nowhere"


def reference(request: Request, index: int) -> list[int]:
    """The text of one sequence, computed without cache, batch or hand-over."""
    model, params = FakeModel(), request.sampling
    tokens = list(request.prompt_token_ids)
    for _ in range(params.max_tokens):
        ids = torch.tensor(tokens)
        planes = model.num_layers * len(model.kv_planes)
        logits = model._logits(_fingerprints(ids, torch.arange(len(tokens))).sum() * planes)
        tokens += draw(logits.unsqueeze(0), [params], [(index, len(tokens))])
        if tokens[-1] in FakeModel.eos_token_ids:
            break
    return tokens[len(request.prompt_token_ids) :]


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(**options: Any) -> World:
        for world in worlds:  # a search makes hundreds, one after the other
            world.close()
        worlds[:] = [World(**options)]
        return worlds[0]

    yield make
    for world in worlds:
        world.close()
