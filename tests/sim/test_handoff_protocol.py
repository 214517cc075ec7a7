"""The hand-over protocol under every order of events that a search can think of (`conftest.py` says what may go wrong)."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams
from mortice.transport.memory import Faults

PREFILLS, DECODES = ("prefill-0", "prefill-1"), ("decode-0", "decode-1")
PLACES = PREFILLS + DECODES
SHARED = [random.Random(1).randrange(1, 257) for _ in range(12)]  # prompts begin alike


class Handoff(RuleBasedStateMachine):
    """Rules are what may happen next; the invariants of the world hold after each."""

    make_world: Callable[..., Any]  # conftest's

    @initialize(
        mode=st.sampled_from(["map", "pull", "push"]),
        seed=st.integers(0, 999),
        prefill_blocks=st.sampled_from([7, 10, 20]),
        decode_blocks=st.sampled_from([7, 9, 24]),
        faulty=st.booleans(),
    )
    def begin(self, mode: str, seed: int, prefill_blocks: int, decode_blocks: int, faulty: bool) -> None:
        num_blocks = dict.fromkeys(PREFILLS, prefill_blocks) | dict.fromkeys(DECODES, decode_blocks)
        faults = Faults(refuse=0.05, partial=0.05, flip=0.03, stall=0.1) if faulty else Faults()
        self.world = self.make_world(mode=mode, seed=seed, num_blocks=num_blocks, faults=faults)
        self.num_submitted = 0

    @rule(
        n=st.integers(1, 3),
        shared=st.sampled_from([0, 4, 5, 8, 12]),
        own=st.sampled_from([1, 3, 4, 5]),
        count=st.integers(1, 10),
        warm=st.booleans(),
        priority=st.integers(0, 1),
    )
    def submit(self, n: int, shared: int, own: int, count: int, warm: bool, priority: int) -> None:
        self.num_submitted += 1
        draw = random.Random(self.num_submitted % 5)  # some requests come twice
        prompt = SHARED[:shared] + [draw.randrange(1, 257) for _ in range(own)]
        params = SamplingParams(max_tokens=count, temperature=1.0 if warm else 0.0, seed=self.num_submitted)
        name = f"r{self.num_submitted}"
        self.world.submit(
            Request(
                id=name,
                prompt_token_ids=prompt,
                sampling=params,
                n=n,
                priority=priority,
                arrival_s=self.num_submitted,
            )
        )

    @rule(place=st.sampled_from(PLACES), times=st.integers(1, 3))
    def turn(self, place: str, times: int) -> None:
        for _ in range(times):
            self.world.turn(place)

    @rule(place=st.sampled_from(PLACES), inward=st.booleans())
    def deliver(self, place: str, inward: bool) -> None:
        self.world.deliver(place, inward=inward)

    @rule(
        place=st.sampled_from(PLACES),
        inward=st.booleans(),
        mishap=st.sampled_from(["overtake", "twice", "lose"]),
    )
    def mishap(self, place: str, inward: bool, mishap: str) -> None:
        self.world.deliver(place, inward=inward, mishap=mishap)

    @rule(count=st.integers(1, 6))
    def move_blocks(self, count: int) -> None:
        self.world.move_blocks(count)

    @rule(count=st.sampled_from([5, 20, 60]))
    def bustle(self, count: int) -> None:
        self.world.bustle(count)

    @rule(place=st.sampled_from(PLACES))
    def heartbeat(self, place: str) -> None:
        self.world.heartbeat(place)

    @rule(seconds=st.sampled_from([1.0, 16.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @precondition(lambda self: len(self.world.traffic))
    @rule(lot=st.integers(0, 99))
    def cancel(self, lot: int) -> None:
        flights = self.world.traffic.flights()
        self.world.cancel(flights[lot % len(flights)].request.id)

    @precondition(lambda self: len(self.world.traffic))
    @rule(lot=st.integers(0, 99), index=st.integers(0, 2))
    def end_sequence(self, lot: int, index: int) -> None:
        flights = self.world.traffic.flights()
        request = flights[lot % len(flights)].request
        self.world.end_sequence(request.id, index % request.n)

    @precondition(lambda self: any(w.is_alive for w in self.world.workers.values()))
    @rule(place=st.sampled_from(PLACES))
    def crash(self, place: str) -> None:
        if self.world.workers[place].is_alive:
            self.world.crash(place)

    @precondition(lambda self: any(not w.is_alive and not w.is_buried for w in self.world.workers.values()))
    @rule()
    def notice(self) -> None:
        place = next(p for p, w in self.world.workers.items() if not w.is_alive and not w.is_buried)
        self.world.notice(place)

    @precondition(lambda self: any(w.is_buried for w in self.world.workers.values()))
    @rule()
    def restart(self) -> None:
        self.world.start(next(p for p, w in self.world.workers.items() if w.is_buried))

    @rule(place=st.sampled_from(PLACES))
    def flip(self, place: str) -> None:
        self.world.flip(place)

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


def search(make_world: Callable[..., Any], *, max_examples: int, steps: int) -> None:
    run_state_machine_as_test(
        type("Handoff", (Handoff,), {"make_world": staticmethod(make_world)}),
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)
def test_any_order_of_events_keeps_every_text_and_leaks_nothing(make_world: Any) -> None:
    search(make_world, max_examples=40, steps=50)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_orders_of_events(make_world: Any) -> None:
    search(make_world, max_examples=5000, steps=80)
