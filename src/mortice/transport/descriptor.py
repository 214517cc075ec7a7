"""Descriptors: how an owner writes one, how a transfer under one is checked before and after its bytes
move."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mortice.specs.kv import BlockRef, ChecksumMode, KVDescriptor, PoolAddress
from mortice.transport.base import Pool
from mortice.transport.checksum import checksum, checksums
from mortice.transport.errors import Corrupt, TransferError


@dataclass(frozen=True, slots=True)
class Plan:
    """Which blocks of the peer go with which blocks of ours. Checked: ids in range and distinct, counts
    equal."""

    peer: PoolAddress
    remote: np.ndarray  # int64 [n]
    generations: np.ndarray  # uint64 [n], as the descriptor has them
    checksums: list[int]  # as the descriptor has them
    local: np.ndarray  # int64 [n]

    @property
    def num_bytes(self) -> int:
        return len(self.remote) * self.peer.block_bytes


def describe(
    pool: Pool, lease_id: str, block_ids: Sequence[int], num_tokens: int, *, is_lendable: bool = False
) -> KVDescriptor:
    """The owner's promise for blocks as they stand now. Reads them once where the pool checksums.

    Call it after the last write to the blocks (last layer stored), while the lease keeps them from being
    given away.
    """
    digests = checksums(pool.blocks, block_ids, pool.address.checksum)
    refs = [
        BlockRef(i, int(pool.generations[i]), digest) for i, digest in zip(block_ids, digests, strict=True)
    ]
    return KVDescriptor(
        lease_id=lease_id, pool=pool.address, blocks=refs, num_tokens=num_tokens, is_lendable=is_lendable
    )


def describe_target(pool: Pool, lease_id: str, block_ids: Sequence[int], num_tokens: int) -> KVDescriptor:
    """Room for a peer's write: like `describe`, without checksums, for the blocks hold nothing yet."""
    refs = [BlockRef(i, int(pool.generations[i]), 0) for i in block_ids]
    return KVDescriptor(lease_id=lease_id, pool=pool.address, blocks=refs, num_tokens=num_tokens)


def plan(pool: Pool, descriptor: KVDescriptor, skip: int, local: Sequence[int]) -> Plan:
    """Match descriptor.blocks[skip:] with local blocks. Raises TransferError for anything that does not
    fit."""
    peer, mine = descriptor.pool, pool.address
    if peer.layout_digest != mine.layout_digest or peer.block_bytes != mine.block_bytes:
        raise TransferError(
            f"block layouts differ: {peer.layout_digest[:8]} with {peer.block_bytes} bytes there, "
            f"{mine.layout_digest[:8]} with {mine.block_bytes} bytes here"
        )
    if not 0 <= skip <= len(descriptor.blocks):
        raise TransferError(f"cannot skip {skip} of {len(descriptor.blocks)} blocks")
    refs = descriptor.blocks[skip:]
    if len(refs) != len(local):
        raise TransferError(f"{len(refs)} blocks described, {len(local)} local blocks given")
    return Plan(
        peer=peer,
        remote=block_ids([ref.block_id for ref in refs], peer.num_blocks, "described"),
        generations=_counters([ref.generation for ref in refs]),
        checksums=[ref.checksum for ref in refs],
        local=block_ids(local, mine.num_blocks, "local"),
    )


def block_ids(ids: Sequence[int] | np.ndarray, num_blocks: int, whose: str) -> np.ndarray:
    """The ids as int64 [n]. Raises TransferError unless each lies in the pool and no two are equal."""
    try:
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
    except (OverflowError, ValueError, TypeError) as error:
        raise TransferError(f"{whose} block ids are not integers of 64 bits") from error
    if array.size and not (int(array.min()) >= 0 and int(array.max()) < num_blocks):
        raise TransferError(f"{whose} block ids reach outside the pool of {num_blocks} blocks")
    if np.unique(array).size != array.size:
        raise TransferError(f"{whose} block ids name a block twice")
    return array


def check_generations(now: np.ndarray, ids: np.ndarray, expected: np.ndarray, when: str) -> None:
    """Raise TransferError if a block of the pool with counters `now` has gone on to other content."""
    check_counters(now[ids], ids, expected, when)


def check_counters(found: np.ndarray, ids: np.ndarray, expected: np.ndarray, when: str) -> None:
    """As `check_generations`, with the counters of the blocks `ids` picked out already."""
    stale = found != expected
    if stale.any():
        first = int(ids[int(stale.argmax())])
        raise TransferError(f"{int(stale.sum())} blocks changed hands {when} (first: block {first})")


def check_landed(blocks: np.ndarray, ids: np.ndarray, expected: Sequence[int], mode: ChecksumMode) -> None:
    """Raise Corrupt if blocks' bytes do not have the checksums expected of them; 0 expects nothing."""
    if mode == "off":
        return
    bad = [
        block_id
        for block_id, digest in zip(ids.tolist(), expected, strict=True)
        if digest and checksum(blocks[block_id], mode) != digest
    ]
    if bad:
        raise Corrupt(f"checksum of block {bad[0]} is wrong after the copy", len(bad))


def _counters(values: Sequence[int]) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.uint64).reshape(-1)
    except (OverflowError, ValueError, TypeError) as error:
        raise TransferError("generations are not unsigned integers of 64 bits") from error
