"""Pools of several owners under one range of block ids."""

from collections.abc import Iterator

import pytest

from mortice.specs.kv import KVLayout
from mortice.transport import space
from mortice.transport.errors import PeerGone, TransferError
from mortice.transport.pool import PrivatePool, SharedPool
from mortice.transport.space import AddressSpace


def layout(tokens: int = 4) -> KVLayout:
    return KVLayout(num_layers=3, planes=((1, 20), (1, 20)), block_size=tokens, dtype="bfloat16", model="m")


@pytest.fixture
def pools() -> Iterator[list[SharedPool]]:
    made = [SharedPool(layout(), n, prefix="mortice-test") for n in (5, 3, 7)]
    yield made
    for pool in made:
        pool.close()


def test_every_pool_is_seen_under_ids_of_its_own(pools: list[SharedPool]) -> None:
    own, *peers = pools
    whole = AddressSpace(own.address)
    windows = [whole.open(peer.address) for peer in peers]
    for number, pool in enumerate(pools):
        pool.blocks[:] = number + 1
    assert (whole.blocks[:5] == 1).all()
    for number, window in enumerate(windows):
        assert (whole.blocks[window.first : window.first + window.num_blocks] == number + 2).all()
    whole.blocks[4] = 9
    assert (own.blocks[4] == 9).all(), "one memory under two addresses"
    peers[0].generations[2] = 8
    assert windows[0].generations[2] == 8
    ids = [range(w.first, w.first + w.num_blocks) for w in windows]
    assert not set(ids[0]) & set(ids[1]), "windows do not overlap"
    assert whole.open(peers[0].address) is windows[0]


def test_addresses_of_a_closed_window_serve_again(pools: list[SharedPool]) -> None:
    own, peer, other = pools
    whole = AddressSpace(own.address)
    first = whole.open(peer.address).first
    whole.close(peer.address.pool_id)
    whole.close(peer.address.pool_id)
    other.blocks[:] = 4
    window = whole.open(other.address)
    assert window.first == first
    assert (whole.blocks[window.first : window.first + 7] == 4).all()


def test_what_is_read_outlives_the_name(pools: list[SharedPool]) -> None:
    own, peer, _ = pools
    whole = AddressSpace(own.address)
    peer.blocks[:] = 5
    window = whole.open(peer.address)
    address = peer.address
    peer.close()
    assert (whole.blocks[window.first] == 5).all()
    whole.close(address.pool_id)
    with pytest.raises(PeerGone):
        whole.open(address)


def test_a_pool_of_another_layout_is_refused(pools: list[SharedPool]) -> None:
    whole = AddressSpace(pools[0].address)
    other = SharedPool(layout(8), 3, prefix="mortice-test")
    with pytest.raises(TransferError, match="layouts differ"):
        whole.open(other.address)
    other.close()


def test_addresses_end(pools: list[SharedPool]) -> None:
    own, peer, _ = pools
    big = SharedPool(layout(), 2000, prefix="mortice-test")
    whole = AddressSpace(own.address)
    with pytest.raises(TransferError, match="no addresses"):
        whole.open(big.address)
    assert whole.open(peer.address).num_blocks == 3
    big.close()


def test_where_there_is_no_space(monkeypatch: pytest.MonkeyPatch, pools: list[SharedPool]) -> None:
    assert PrivatePool(layout(), 4).space is None
    assert pools[0].space is not None
    monkeypatch.setattr(space, "LOADS_IN_ORDER", False)
    pool = SharedPool(layout(), 4, prefix="mortice-test")
    assert pool.space is None
    pool.blocks[3] = 7
    reader = pools[0].space.open(pool.address)
    assert (pools[0].space.blocks[reader.first + 3] == 7).all()
    pool.close()
