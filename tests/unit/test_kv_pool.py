"""The pool's books under random use, against a model of plain sets."""

import random

import pytest

from mortice.kv.hashing import chain_root, extend_chain
from mortice.kv.leases import LeaseTable
from mortice.kv.pool import BlockPool


def test_allocation_takes_the_unnamed_first_and_then_the_longest_free() -> None:
    pool = BlockPool(4)
    a = pool.allocate(3)
    assert a is not None
    names = [bytes([i]) * 32 for i in range(3)]
    for block, name in zip(a, names, strict=True):
        pool.commit(block, name)
    pool.release(a)
    assert pool.lookup(names) == a
    never_used = pool.allocate(1)
    assert never_used == [3]
    evicted = pool.allocate(1)
    assert evicted == [a[2]], "the tail of the chain goes first"
    assert pool.lookup(names) == a[:2]


def test_a_found_block_is_taken_off_the_free_list_and_shared() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1) or []
    pool.commit(block, b"name")
    pool.release([block])
    pool.acquire([block])
    pool.acquire([block])
    assert pool.refs(block) == 2
    assert pool.num_free == 1
    assert pool.allocate(2) is None
    pool.release([block])
    pool.release([block])
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="more often"):
        pool.release([block])


def test_generation_rises_with_each_new_content_and_not_with_reuse() -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1) or []
    first = pool.generations[block]
    pool.commit(block, b"name")
    pool.release([block])
    pool.acquire([block])
    assert pool.generations[block] == first
    pool.release([block])
    pool.allocate(1)
    assert pool.generations[block] == first + 1


@pytest.mark.parametrize("seed", range(5))
def test_books_balance_under_random_use(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    pool = BlockPool(24)
    held: list[list[int]] = []
    serial = 0
    for _ in range(3000):
        action = rng.random()
        if action < 0.4:
            blocks = pool.allocate(rng.randint(1, 5))
            if blocks is not None:
                held.append(blocks)
                for block in blocks[: rng.randint(0, len(blocks))]:
                    serial += 1
                    pool.commit(block, serial.to_bytes(32, "big"))
        elif action < 0.8 and held:
            pool.release(held.pop(rng.randrange(len(held))))
        elif serial:
            name = rng.randint(1, serial).to_bytes(32, "big")
            found = pool.lookup([name])
            if found:
                pool.acquire(found)
                held.append(found)
        pool.check_integrity(block for blocks in held for block in blocks)
    stored, removed = pool.drain_events()
    alive = set(stored) - set(removed)
    assert all(pool.lookup([name]) for name in alive)
    for blocks in held:
        pool.release(blocks)
    pool.check_integrity([])


def test_integrity_check_sees_a_leak() -> None:
    pool = BlockPool(3)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="leaked"):
        pool.check_integrity([])


def test_chain_roots_cannot_be_confused() -> None:
    def root(adapter: str | None, salt: str) -> bytes:
        return chain_root(model="m", weight_version=0, adapter=adapter, salt=salt)

    roots = {
        root(None, ""),
        root("", ""),
        root("a", ""),
        root("", "a"),
        root("a", "b"),
        root("ab", ""),
        root(None, "a"),
    }
    assert len(roots) == 7
    assert chain_root(model="m", weight_version=1, adapter=None, salt="") != root(None, "")


def test_a_chain_names_history_not_only_content() -> None:
    tokens = list(range(16)) + [7] * 16 + [7] * 16 + [1]
    names = extend_chain(b"root", tokens, 0, 16)
    assert len(names) == 3
    assert len(set(names)) == 3
    assert extend_chain(names[0], tokens, 16, 16) == names[1:]


def test_a_lease_ends_exactly_once() -> None:
    leases = LeaseTable(lease_s=10)
    leases.grant("p/1", "r1", [1, 2], now_s=0)
    leases.grant("p/2", "r1", [3], now_s=0)
    leases.renew(["p/1", "unknown"], now_s=8)
    assert [lease.lease_id for lease in leases.expire(now_s=10)] == ["p/2"]
    assert leases.release("p/2") == []
    assert leases.release("p/1") == [1, 2]
    assert leases.release("p/1") == []
    assert leases.release_request("r1") == []
    assert len(leases) == 0
