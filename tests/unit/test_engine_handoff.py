"""Two engines that hand KV over through shared memory: the text is the one of a single engine, and nothing leaks."""

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from mortice.models.fake import reference_tokens
from mortice.specs.deployment import Transfer
from mortice.specs.messages import (
    Abort,
    FromWorker,
    LeaseRelease,
    LeaseRenew,
    Prefilled,
    Pushed,
    PushTarget,
    Submit,
)
from mortice.testing import FakeClock


class Pair:
    """A prefill and a decode engine, and the cluster's part in between."""

    def __init__(self, make_rig: Any, **options: Any) -> None:
        self.clock = FakeClock()
        decode_options = options.pop("decode", {})
        options["clock"] = self.clock
        self.p = make_rig(name="prefill-0.1", **options)
        self.d = make_rig(name="decode-0.1", **(options | decode_options))
        self.requests: dict[str, Any] = {}
        self.to_p: list[FromWorker] = []
        self.to_d: list[FromWorker] = []

    def submit(self, request: Any) -> None:
        self.requests[request.id] = request
        self.p.submit(Submit(request=request, prefill_only=True))

    def deliver(self) -> None:
        for message in self.p.turn():
            if isinstance(message, Prefilled) and message.descriptor is not None:
                request = self.requests[message.request_id]
                resumed = [None if d.finish_reason else d.token_ids for d in message.first]
                self.d.submit(Submit(request=request, resumed=resumed, handoff=message.descriptor))
            elif isinstance(message, Pushed):
                self.d.said += self.d.engine.pushed(message)
                self._to_owner(self.d.said[-1:])
        self._to_owner(self.d.turn())

    def deliver_until(self, condition: Callable[[], Any]) -> None:
        for _ in range(2000):
            if condition():
                return
            self.deliver()
            time.sleep(0.0005)  # a copy runs on another thread
        raise AssertionError("it does not come about")

    def _to_owner(self, messages: list[FromWorker]) -> None:
        for message in messages:
            if isinstance(message, LeaseRelease):
                self.p.engine.handoff.release(message.lease_ids)
            elif isinstance(message, LeaseRenew):
                self.p.engine.handoff.leases.renew(message.lease_ids, self.clock())
            elif isinstance(message, PushTarget):
                self.p.said += self.p.engine.push(message)

    def run(self) -> None:
        for _ in range(20000):
            self.deliver()
            busy = any(r.engine.has_work or r.engine.scheduler.fetching for r in (self.p, self.d))
            if not busy and not len(self.p.engine.handoff.leases):
                break
            if self.d.engine.scheduler.fetching:
                time.sleep(0.0005)  # the copy runs on another thread
        else:
            raise AssertionError("the pair does not come to rest")
        self.p.engine.check_integrity()
        self.d.engine.check_integrity()

    def tokens(self, request_id: str, index: int = 0) -> list[int]:
        return self.p.tokens(request_id, index) + self.d.tokens(request_id, index)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 257) for _ in range(length)]


@pytest.mark.parametrize("mode", ["map", "pull", "push"])
@pytest.mark.parametrize("prompt_len", [1, 4, 7, 33])
def test_the_text_is_that_of_one_engine(make_rig: Any, make_request: Any, mode: Any, prompt_len: int) -> None:
    pair = Pair(make_rig, transfer=Transfer(mode=mode, checksum="full"))
    prompt = prompt_of(prompt_len)
    pair.submit(make_request("r", prompt, max_tokens=12))
    pair.run()
    assert pair.tokens("r") == reference_tokens(prompt, 12)
    assert len(pair.p.tokens("r")) == 1, "the first token comes from the prefill worker"
    assert pair.p.engine.pool.num_free == pair.d.engine.pool.num_free == 64


@pytest.mark.parametrize("mode", ["pull", "push"])
def test_n_sequences_cross_once(make_rig: Any, make_request: Any, mode: Any) -> None:
    pair = Pair(make_rig, transfer=Transfer(mode=mode))
    single = make_rig()
    request = make_request("r", prompt_of(10), n=3, temperature=1.0, seed=11, max_tokens=9)
    pair.submit(request)
    single.submit(Submit(request=request))
    pair.run()
    single.run()
    for i in range(3):
        assert pair.tokens("r", i) == single.tokens("r", i)
    assert pair.d.engine.handoff.counters.num_received == 1


def test_back_pressure_a_full_decode_worker_stops_the_prefill_worker(
    make_rig: Any, make_request: Any
) -> None:
    pair = Pair(make_rig, num_blocks=24, decode={"num_blocks": 8, "max_num_seqs": 16})
    prompts = {f"r{i}": prompt_of(12, i) for i in range(12)}
    for name, prompt in prompts.items():
        pair.submit(make_request(name, prompt, max_tokens=14))
    highest = 0
    for _ in range(12):
        pair.deliver()
        highest = max(highest, len(pair.p.engine.handoff.leases))
    assert highest >= 4, "finished prompts wait on the prefill worker"
    assert pair.p.engine.scheduler.waiting, "which has no room for more"
    pair.run()
    for name, prompt in prompts.items():
        assert pair.tokens(name) == reference_tokens(prompt, 14), name


def test_a_lease_that_nobody_renews_ends_and_the_reader_computes(make_rig: Any, make_request: Any) -> None:
    pair = Pair(make_rig, num_blocks=8, transfer=Transfer(mode="pull"))
    prompt = prompt_of(12)
    pair.submit(make_request("r", prompt))
    while not len(pair.p.engine.handoff.leases):
        made = pair.p.turn()
    (prefilled,) = [m for m in made if isinstance(m, Prefilled)]
    pair.clock.advance(31)
    pair.p.engine.heartbeats()
    assert len(pair.p.engine.handoff.leases) == 0
    pair.p.submit(Submit(request=make_request("other", prompt_of(31, 5), max_tokens=1)))  # takes the blocks
    pair.p.run()
    pair.d.submit(
        Submit(
            request=pair.requests["r"], resumed=[prefilled.first[0].token_ids], handoff=prefilled.descriptor
        )
    )
    pair.run()
    assert pair.tokens("r") == reference_tokens(prompt, 8)
    assert pair.d.engine.handoff.counters.num_failed == 1


def test_heartbeats_keep_a_waiting_lease_alive(make_rig: Any, make_request: Any) -> None:
    pair = Pair(make_rig, decode={"num_blocks": 8, "max_num_seqs": 1}, transfer=Transfer(mode="pull"))
    for i in range(2):
        pair.submit(make_request(f"r{i}", prompt_of(12, i), max_tokens=15))
    pair.deliver_until(lambda: pair.d.engine.scheduler.running and not pair.d.engine.scheduler.fetching)
    assert len(pair.p.engine.handoff.leases) == 1
    for _ in range(10):
        pair.clock.advance(20)
        pair._to_owner(pair.d.engine.heartbeats())
        pair.p.engine.heartbeats()
    assert len(pair.p.engine.handoff.leases) == 1
    pair.run()
    assert pair.tokens("r1") == reference_tokens(prompt_of(12, 1), 15)
    assert pair.d.engine.handoff.counters.num_failed == 0


def test_cancel_on_both_sides_at_every_moment(make_rig: Any, make_request: Any) -> None:
    for turns in range(10):
        pair = Pair(make_rig, token_budget=16)
        pair.submit(make_request("gone", prompt_of(40), n=2, max_tokens=30))
        for _ in range(turns):
            pair.deliver()
        pair._to_owner(pair.d.engine.abort(Abort(["gone"])))
        pair.p.engine.abort(Abort(["gone"]))
        pair.requests.clear()
        pair.run()
        assert pair.p.engine.pool.num_free == pair.d.engine.pool.num_free == 64, f"after {turns} turns"


def test_a_prefix_the_reader_has_is_not_moved(make_rig: Any, make_request: Any) -> None:
    pair = Pair(make_rig, transfer=Transfer(mode="pull"))
    prompt = prompt_of(22)
    for name in ("a", "b"):
        pair.submit(make_request(name, prompt))
        pair.run()
    block_bytes = pair.d.pool.address.block_bytes
    assert pair.d.engine.handoff.counters.bytes_received == (6 + 1) * block_bytes
    assert pair.tokens("b") == pair.tokens("a") == reference_tokens(prompt, 8)


def test_random_traffic_through_small_pools(make_rig: Any, make_request: Any) -> None:
    seed = 20261123
    print(f"seed {seed}")
    rng = random.Random(seed)
    for mode in ("map", "pull", "push"):
        pair = Pair(
            make_rig,
            num_blocks=20,
            token_budget=24,
            transfer=Transfer(mode=mode),  # type: ignore[arg-type]
            decode={"num_blocks": 14},
        )
        expected = {}
        shared = prompt_of(9, 99)
        for i in range(60):
            prompt = shared[: rng.randint(0, 9)] + prompt_of(rng.randint(1, 20), i)
            count = rng.randint(1, 20)
            expected[f"{mode}{i}"] = reference_tokens(prompt, count)
            pair.submit(make_request(f"{mode}{i}", prompt, max_tokens=count))
            for _ in range(rng.randint(0, 4)):
                pair.deliver()
        pair.run()
        for name, tokens in expected.items():
            assert pair.tokens(name) == tokens, name


def test_lent_blocks_are_read_where_they_lie(make_rig: Any, make_request: Any) -> None:
    pair = Pair(make_rig)
    prompt = prompt_of(22)
    pair.submit(make_request("r", prompt, n=2, max_tokens=12))
    pair.deliver_until(lambda: len(pair.d.engine.scheduler.running) == 2)
    lease, num_own = pair.p.engine.handoff.leases, pair.d.engine.pool.num_blocks
    assert lease.num_blocks == 6, "lent for as long as somebody reads"
    assert pair.d.engine.pool.num_free == num_own - 2, "each sequence copied the block that it writes to"
    pair.run()
    assert pair.tokens("r") == pair.tokens("r", 1) == reference_tokens(prompt, 12)
    moved = pair.d.engine.handoff.counters
    assert (moved.num_received, moved.bytes_received, moved.num_in_place) == (0, 0, 1)
    assert lease.num_blocks == 0
    assert pair.p.engine.pool.num_free == pair.d.engine.pool.num_free == 64


def test_a_reader_whose_lease_ran_out_unseen_computes_again(make_rig: Any, make_request: Any) -> None:
    pair = Pair(make_rig, num_blocks=16)
    prompt = prompt_of(14)
    pair.submit(make_request("r", prompt, max_tokens=20))
    pair.deliver_until(lambda: pair.d.engine.scheduler.running)
    pair.clock.advance(31)
    pair.p.engine.heartbeats()
    pair.p.submit(Submit(request=make_request("other", prompt_of(60, 5), max_tokens=1)))  # takes the blocks
    pair.p.run()
    pair.run()
    assert pair.tokens("r") == reference_tokens(prompt, 20)
    assert pair.d.engine.scheduler.num_preemptions == 1


def test_lent_blocks_outlive_their_owner(make_rig: Any, make_request: Any) -> None:
    pair = Pair(make_rig)
    prompt = prompt_of(14)
    pair.submit(make_request("r", prompt, max_tokens=20))
    pair.deliver_until(lambda: pair.d.engine.scheduler.running)
    pool_id = pair.p.pool.address.pool_id
    pair.p.close()
    pair.d.engine.peer_gone(pool_id)
    pair.d.run()
    assert pair.tokens("r") == reference_tokens(prompt, 20)
    assert pair.d.engine.scheduler.num_preemptions == 0
    assert pool_id not in pair.d.engine.handoff._space._windows, "its memory is given back"


def test_no_more_than_half_of_a_pool_is_lent(make_rig: Any, make_request: Any) -> None:
    pair = Pair(make_rig, num_blocks=32)
    for i in range(4):
        pair.submit(make_request(f"r{i}", prompt_of(20, i), max_tokens=12))
    pair.run()
    for i in range(4):
        assert pair.tokens(f"r{i}") == reference_tokens(prompt_of(20, i), 12)
    moved = pair.d.engine.handoff.counters
    assert (moved.num_in_place, moved.num_received) == (3, 1)
