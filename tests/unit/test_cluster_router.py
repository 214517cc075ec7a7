"""The request router without workers: what is said to whom, what the control plane hears; and the words of the dead."""

import signal
from typing import Any

from mortice.cluster.decisions import Decisions
from mortice.cluster.flight import Flight
from mortice.cluster.kv_connector import KVConnector
from mortice.cluster.launcher import LocalLauncher
from mortice.cluster.live import LiveCluster
from mortice.cluster.request_router import RequestRouter
from mortice.sched import events
from mortice.sched.plane import Setup
from mortice.sched.recovery import MAX_ATTEMPTS, is_blamed
from mortice.specs.deployment import Deployment
from mortice.specs.errors import MorticeError
from mortice.specs.kv import KVDescriptor, KVLayout, PoolAddress
from mortice.specs.messages import (
    Abort,
    Deltas,
    EndSequence,
    Hello,
    LeaseRelease,
    Prefilled,
    Submit,
    ToWorker,
    WorkerStats,
    encode,
)
from mortice.specs.request import Delta, Request
from mortice.specs.sampling import SamplingParams
from mortice.testing import FakeClock


class Crew:
    """One prefill and one decode worker that only listen; `living` says who is there."""

    def __init__(self) -> None:
        self.living: list[str] = []
        self.said: list[tuple[str, ToWorker]] = []
        setup = Setup(block_size=4, local_prefill_tokens=2)
        self.decisions = Decisions(setup, clock=FakeClock())
        for worker_id in ("prefill-0.1", "decode-0.1"):
            self.join(worker_id)
        self.router = RequestRouter(self.decisions, KVConnector(self), self)

    def join(self, worker_id: str) -> None:
        self.living.append(worker_id)
        self.decisions.hear(events.Joined(0.0, worker_id, worker_id.partition("-")[0], 9))

    def send(self, worker_id: str, message: ToWorker) -> bool:
        if worker_id not in self.living:
            return False
        self.said.append((worker_id, message))
        return True

    def can_decode(self) -> bool:
        return True

    def tell(self, kind: str, flight: Flight, **what: Any) -> None:
        """Nobody watches."""

    def replace(self, worker_id: str) -> str:
        place, _, life = worker_id.rpartition(".")
        self.living.remove(worker_id)
        self.decisions.hear(events.Left(0.0, worker_id))
        self.join(f"{place}.{int(life) + 1}")
        return self.living[-1]


def fly(n: int = 1) -> tuple[RequestRouter, Crew, Flight, list[Delta | MorticeError]]:
    crew, heard = Crew(), []
    traffic = crew.router
    request = Request(id="r", prompt_token_ids=[1] * 9, sampling=SamplingParams(max_tokens=50), n=n)
    flight = Flight(request, [], heard.append)
    traffic.open(flight)
    return traffic, crew, flight, heard


def lease(lease_id: str) -> KVDescriptor:
    address = PoolAddress(pool_id="p", num_blocks=9, block_bytes=4, layout_digest="")
    return KVDescriptor(lease_id=lease_id, pool=address, blocks=[], num_tokens=9)


def test_a_request_goes_to_prefill_then_with_its_lease_to_decode() -> None:
    traffic, crew, flight, heard = fly()
    word = Prefilled(request_id="r", first=[Delta("r", 0, [7])], descriptor=lease("prefill-0.1/1"))
    traffic.hear("prefill-0.1", word)
    traffic.hear("decode-0.1", Deltas([Delta("r", 0, [8], finish_reason="stop")]))
    assert [(w, type(m)) for w, m in crew.said] == [("prefill-0.1", Submit), ("decode-0.1", Submit)]
    second = crew.said[1][1]
    assert isinstance(second, Submit)
    assert second.resumed == [[7]]
    assert flight.is_over
    assert len(heard) == 2
    traffic.close(flight)
    assert crew.said[-1] == ("prefill-0.1", LeaseRelease(["prefill-0.1/1"]))
    assert not len(traffic)


def test_words_of_a_worker_that_no_longer_has_the_request_change_nothing() -> None:
    traffic, crew, flight, heard = fly()
    traffic.hear("decode-0.1", Deltas([Delta("r", 0, [99])]))
    stray = Prefilled(request_id="r", first=[Delta("r", 0, [99])], descriptor=lease("decode-0.1/1"))
    traffic.hear("decode-0.1", stray)
    assert not heard
    assert crew.said[-1] == ("decode-0.1", LeaseRelease(["decode-0.1/1"]))
    traffic.close(flight)
    assert crew.said[-1] == ("prefill-0.1", Abort(["r"]))


def test_a_sequence_that_ended_before_a_death_is_not_told_twice() -> None:
    traffic, crew, flight, heard = fly(n=2)
    traffic.hear("prefill-0.1", Deltas([Delta("r", 0, [], finish_reason="error", error="grammar")]))
    crew.replace("prefill-0.1")
    traffic.worker_left("prefill-0.1")
    first = [Delta("r", 0, [5]), Delta("r", 1, [6])]
    traffic.hear(flight.worker_id or "", Prefilled(request_id="r", first=first, descriptor=None))
    assert flight.given == [[], [6]]
    assert len(heard) == 2


def test_deaths_count_against_a_request_only_as_long_as_it_makes_no_progress() -> None:
    traffic, crew, flight, heard = fly()
    for token in range(3 * MAX_ATTEMPTS):
        worker = flight.worker_id or ""
        crew.replace(worker)
        traffic.worker_left(worker)
        traffic.hear(flight.worker_id or "", Deltas([Delta("r", 0, [token])]))
    assert flight.given == [list(range(3 * MAX_ATTEMPTS))]
    for _ in range(MAX_ATTEMPTS):
        assert not isinstance(heard[-1], MorticeError)
        worker = flight.worker_id or ""
        crew.replace(worker)
        traffic.worker_left(worker)
    assert isinstance(heard[-1], MorticeError)
    assert flight.is_over


def test_deaths_by_a_hand_from_outside_never_count() -> None:
    traffic, crew, flight, heard = fly()
    for _ in range(5 * MAX_ATTEMPTS):
        worker = flight.worker_id or ""
        crew.replace(worker)
        traffic.worker_left(worker, blamed=False)
    assert not heard
    killed = -signal.SIGKILL
    assert not is_blamed(killed, was_silenced=False, ran_out_of_memory=False)
    assert is_blamed(killed, was_silenced=True, ran_out_of_memory=False)
    assert is_blamed(killed, was_silenced=False, ran_out_of_memory=True)
    assert is_blamed(-signal.SIGSEGV, was_silenced=False, ran_out_of_memory=False)
    assert is_blamed(1, was_silenced=False, ran_out_of_memory=False)


def test_a_sequence_that_is_ended_frees_its_worker_and_is_not_taken_up_again() -> None:
    traffic, crew, flight, heard = fly(n=2)
    first = [Delta("r", 0, [5]), Delta("r", 1, [6])]
    traffic.hear("prefill-0.1", Prefilled(request_id="r", first=first, descriptor=lease("prefill-0.1/1")))
    traffic.end_sequence("r", 0)
    assert crew.said[-1] == ("decode-0.1", EndSequence("r", 0))
    traffic.hear("decode-0.1", Deltas([Delta("r", 0, [7]), Delta("r", 1, [8])]))
    assert flight.given == [[5], [6, 8]]
    crew.replace("decode-0.1")
    traffic.worker_left("decode-0.1")
    (again,) = [m for w, m in crew.said if w == "decode-0.2" and isinstance(m, Submit)]
    assert again.resumed == [None, [6, 8]]
    traffic.end_sequence("r", 1)
    traffic.end_sequence("r", 1)
    assert crew.said[-1] == ("decode-0.2", Abort(["r"]))
    assert flight.is_over
    assert [d.finish_reason for d in heard if isinstance(d, Delta)] == [None, None, "abort", None, "abort"]


async def test_a_worker_that_says_hello_after_its_death_is_not_taken_for_alive() -> None:
    live = LiveCluster(Deployment(model="fake:"), model_path="fake:", draft_model_path=None, threads=1)
    live.decisions.begin(Setup())
    member = live._members.add("decode", LocalLauncher())
    live._members.begin_life(member)
    hello = Hello(
        worker_id=member.worker_id,
        pid=1,
        layout=KVLayout(num_layers=1, planes=((1, 1),), block_size=4, dtype="float32", model="m"),
        pool=PoolAddress(pool_id="p", num_blocks=9, block_bytes=4, layout_digest=""),
        max_context=9,
        vocab_size=9,
        eos_token_ids=[],
        weight_version=0,
        startup_s={},
    )
    fleet = live.decisions.plane.fleet
    live._hear(member.worker_id, hello)
    assert list(fleet.workers) == [member.worker_id]
    live._manager.bury(member, blamed=False)
    live._hear(member.worker_id, hello)
    assert not fleet.workers, "requests would go to a worker whose death was already dealt with"
    live._receive(member.worker_id, encode(hello), True)
    assert not fleet.workers


def test_words_of_another_place_are_not_taken_for_those_of_a_worker_here() -> None:
    live = LiveCluster(Deployment(model="fake:"), model_path="fake:", draft_model_path=None, threads=1)
    live.decisions.begin(Setup())
    member = live._members.add("decode", LocalLauncher())
    live._members.begin_life(member)
    stats = WorkerStats(worker_id=member.worker_id, state="running")
    live._receive(member.worker_id, encode(stats), True)
    assert member.stats is None
    live._receive(member.worker_id, encode(stats), False)
    assert member.stats == stats
