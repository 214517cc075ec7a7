"""The in-memory transport and ten thousand mishaps: whatever is accepted is what was described."""

import numpy as np
import pytest

from mortice.specs.kv import KVLayout
from mortice.transport.base import TransferResult
from mortice.transport.descriptor import describe, describe_target
from mortice.transport.memory import Faults, MemoryFabric, MemoryTransport
from mortice.transport.pool import PrivatePool

LAYOUT = KVLayout(num_layers=1, planes=((1, 8), (1, 8)), block_size=4, dtype="float32", model="m")
NUM_BLOCKS = 32
ROUGH = Faults(refuse=0.05, partial=0.1, flip=0.03, reuse=0.03, stall=0.2)


def pools(seed: int) -> tuple[PrivatePool, PrivatePool]:
    there, here = (PrivatePool(LAYOUT, NUM_BLOCKS, checksum="full") for _ in range(2))
    there.blocks[:] = np.random.default_rng(seed).integers(0, 256, there.blocks.shape, np.uint8)
    return there, here


@pytest.mark.parametrize("verb", ["read", "write"])
def test_ten_thousand_rough_transfers_accept_no_corrupted_block(verb):
    there, here = pools(0)
    fabric = MemoryFabric(seed=11, faults=ROUGH)
    a, b = MemoryTransport(fabric, there), MemoryTransport(fabric, here)
    draw = np.random.default_rng(5)
    accepted = refused = 0
    for _ in range(1250):
        promised: dict[str, tuple[list[int], list[int], np.ndarray]] = {}
        results: list[TransferResult] = []
        order = draw.permutation(NUM_BLOCKS).tolist()
        for lane in range(4):
            theirs, ours = order[lane * 8 : lane * 8 + 4], order[31 - lane * 8 : 27 - lane * 8 : -1]
            lease = f"lease-{lane}"
            promised[lease] = (theirs, ours, there.blocks[theirs].copy())
            if verb == "read":
                b.read(describe(there, lease, theirs, 16), 0, ours, results.append)
            else:
                a.write(theirs, describe_target(here, lease, ours, 16), 0, results.append)
        fabric.run()
        assert sorted(result.lease_id for result in results) == sorted(promised)
        for result in results:
            _, ours, content = promised[result.lease_id]
            if result.error is None:
                accepted += 1
                assert np.array_equal(here.blocks[ours], content)
            else:
                refused += 1
                assert result.num_bytes == 0
    assert accepted + refused == 5000
    assert accepted > 1000
    assert refused > 1000
    assert len(here.landing) == 0


def test_one_seed_has_one_history():
    def history(seed: int) -> list[tuple[str, str | None]]:
        there, here = pools(1)
        fabric = MemoryFabric(seed=seed, faults=ROUGH)
        MemoryTransport(fabric, there)
        reader = MemoryTransport(fabric, here)
        results: list[TransferResult] = []
        for lease in range(6):
            reader.read(
                describe(there, str(lease), [lease, lease + 10], 8), 0, [lease, lease + 6], results.append
            )
        fabric.run()
        return [(result.lease_id, result.error) for result in results]

    assert history(4) == history(4)
    assert len({tuple(history(seed)) for seed in range(5)}) > 1


def test_a_broken_transfer_can_be_tried_again_into_the_same_blocks():
    there, here = pools(2)
    fabric = MemoryFabric(seed=1, faults=Faults(partial=1.0))
    MemoryTransport(fabric, there)
    reader = MemoryTransport(fabric, here)
    results: list[TransferResult] = []
    source = describe(there, "lease", list(range(10)), 40)
    reader.read(source, 0, list(range(10)), results.append)
    fabric.run()
    fabric.faults = Faults()
    reader.read(source, 0, list(range(10)), results.append)
    fabric.run()
    assert "broke after" in str(results[0].error)
    assert results[1].error is None
    assert np.array_equal(here.blocks[:10], there.blocks[:10])


def test_a_peer_killed_in_the_middle_ends_its_transfers():
    there, here = pools(3)
    fabric = MemoryFabric()
    MemoryTransport(fabric, there)
    reader = MemoryTransport(fabric, here)
    results: list[TransferResult] = []
    reader.read(describe(there, "lease", [1, 2, 3], 12), 0, [1, 2, 3], results.append)
    assert fabric.step()
    fabric.kill(there.address.pool_id)
    fabric.run()
    assert results[0].error == "the peer is gone"
    assert len(here.landing) == 0
    assert not fabric.step()
