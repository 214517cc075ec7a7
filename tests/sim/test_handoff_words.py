"""Single words of the hand-over that come twice, late or from the dead: what the search found, and what it might have."""

from collections.abc import Callable
from typing import Any

import pytest

from mortice.specs.messages import PushTarget, decode_to_worker
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams
from mortice.transport.memory import Faults

P, D = "prefill-0", "decode-0"


@pytest.fixture
def push_world(make_world: Callable[..., Any]) -> Any:
    return make_world(mode="push", seed=1, num_blocks={P: 16, D: 16}, faults=Faults())


def request_of(name: str, length: int = 13, count: int = 6, first: int = 1) -> Request:
    return Request(
        id=name,
        prompt_token_ids=list(range(first, first + length)),
        sampling=SamplingParams(max_tokens=count, temperature=0.0),
    )


def until(world: Any, condition: Callable[[], bool], *places: str) -> None:
    """Turn these workers and carry their messages, moving no block, until the condition holds."""
    for _ in range(100):
        for place in places:
            if condition():
                return
            world.turn(place)
            world.deliver(place, inward=False)
            if condition():
                return
            world.deliver(place, inward=True)
    raise AssertionError("it does not come about")


def has(box: list[bytes], kind: type, read: Callable[[bytes], Any]) -> bool:
    return any(isinstance(read(data), kind) for data in box)


def test_a_push_order_told_twice_is_carried_out_once(push_world: Any) -> None:
    world = push_world
    world.submit(request_of("r"))
    prefill = world.workers[P]
    until(world, lambda: has(prefill.inbox, PushTarget, decode_to_worker), P, D)
    world.deliver(P, inward=True, mishap="twice")
    world.deliver(P, inward=True)
    assert len(world.fabric._under_way) == 1
    world.drain()


def test_a_reader_whose_request_was_cancelled_survives_the_death_of_the_owner(push_world: Any) -> None:
    world = push_world
    world.submit(request_of("r"))
    until(world, lambda: bool(world.workers[D].engine.scheduler.fetching), P, D)
    world.cancel("r")
    world.crash(P)
    world.notice(P)
    world.drain()
    assert world.workers[D].engine.pool.num_free == 16
