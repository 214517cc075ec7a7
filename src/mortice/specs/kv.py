"""How KV is laid out in a block pool, and the descriptor under which blocks change hands.

A pool is one piece of memory of `num_blocks` blocks. All layers of a block lie together, so a block moves in one copy:

    pool:   | block 0 | block 1 | ...
    block:  | layer 0: plane 0, plane 1 | layer 1: plane 0, plane 1 | ...
    plane:  [block_size, heads, dim]

An ordinary layer has two planes (K and V); a latent-attention layer has one (the compressed KV beside the rotary key).
"""

import hashlib
from typing import Literal

import msgspec

ChecksumMode = Literal["full", "sampled", "off"]  # every byte; 256 bytes of every 4096; none
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class KVLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of a block. Two workers may exchange blocks only if their layouts have the same hash."""

    num_layers: int
    planes: tuple[tuple[int, int], ...]  # (heads, dim) of each plane of a layer
    block_size: int  # tokens
    dtype: str
    model: str  # identity of the weights that give the numbers their meaning

    @property
    def token_bytes(self) -> int:
        """Bytes of KV for one token, all layers."""
        return self.num_layers * sum(h * d for h, d in self.planes) * DTYPE_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        return self.token_bytes * self.block_size

    def digest(self) -> str:
        """Layout hash: equal layouts and only they agree on it."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]


class BlockRef(msgspec.Struct, array_like=True, frozen=True):
    """One block as its owner held it when it wrote the descriptor."""

    block_id: int
    generation: int  # goes up each time the owner gives the block to new content
    checksum: int  # xxh3-64 of what `PoolAddress.checksum` says of the block's bytes; 0 where there is none


class PoolAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a peer reaches a pool. A transport reads the fields that it knows."""

    pool_id: str  # unique to the life of the owner: a restarted worker's pool has another
    num_blocks: int
    block_bytes: int
    layout_digest: str
    checksum: ChecksumMode = "off"  # what the owner's block checksums cover
    shm_name: str = ""  # POSIX shared memory on `host`, empty where there is none
    host: str = ""  # identity of the host's shared memory: equal where one can map what the other made
    tcp: str = ""  # "address:port" of the owner's block server
    nixl: bytes = b""  # agent metadata and the addresses of the pool's memory


class KVDescriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A promise by the owner of a pool: these blocks hold these tokens' KV for as long as the lease lives."""

    lease_id: str
    pool: PoolAddress
    blocks: list[BlockRef]
    num_tokens: int  # tokens of KV in the blocks; the last block may be partly filled
    is_lendable: bool = False  # the owner can spare the blocks until the reader's sequences end
