"""A process that owns a pool until it is killed: prints a descriptor of it, then answers lines on its stdin.

"raise N": raise the generation of block N. "sum N": the sum of block N's bytes. "end": close everything and
leave.
"""

import sys

import msgspec
import numpy as np

from mortice.specs.kv import KVLayout
from mortice.transport.choose import open_pool, open_transport
from mortice.transport.descriptor import describe

LAYOUT = KVLayout(num_layers=4, planes=((4, 64), (4, 64)), block_size=8, dtype="float32", model="chaos")
NUM_BLOCKS = 512  # of 64 KiB
TOKEN = "chaos"


def content(num_blocks: int) -> np.ndarray:
    """What the owner's pool holds: uint8 [num_blocks, block_bytes]."""
    return np.random.default_rng(7).integers(0, 256, (num_blocks, LAYOUT.block_bytes), np.uint8)


def main(kind: str, prefix: str, num_blocks: int) -> None:
    pool = open_pool(kind, LAYOUT, num_blocks, prefix=prefix)
    pool.blocks[:] = content(num_blocks)
    transport = open_transport(kind, pool, token=TOKEN)
    descriptor = describe(pool, "lease", range(num_blocks), num_blocks * LAYOUT.block_size)
    print(msgspec.json.encode(descriptor).decode(), flush=True)
    for line in sys.stdin:
        verb, *numbers = line.split()
        if verb == "end":
            break
        block = int(numbers[0])
        if verb == "raise":
            pool.generations[block] += 1
        print(int(pool.blocks[block].sum()), flush=True)
    transport.close()
    pool.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
