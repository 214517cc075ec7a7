"""The thread level's vocabulary: functions that give values, and instructions with their effects.

Emitter and simulator both work from these tables: the first knows each entry's PTX, the second what it does to
barriers, memory and groups of asynchronous work. An entry that one of them lacks is refused by name. Shared memory at
this level is bytes: a box `tiles[o]` of a `u8` buffer is the address o bytes in; swizzles are in the addresses.
"""

from dataclasses import dataclass

from mortice.tile.dtypes import DType, boolean, f32, i32, u32


@dataclass(frozen=True, slots=True)
class Function:
    """dtype None: that of the first argument. together: whose threads must call it as one ("thread": no one's)."""

    dtype: DType | None
    args: int
    together: str = "thread"


FUNCTIONS: dict[str, Function] = {
    # Where am I. Warp and warpgroup are uniform values; thread, warp and warpgroup count within the role.
    "thread": Function(i32, 0),
    "lane": Function(i32, 0),
    "warp": Function(i32, 0),
    "warpgroup": Function(i32, 0),
    "cluster_rank": Function(i32, 0),
    "num_multiprocessors": Function(i32, 0),  # host: in the extents of a launch
    "num_blocks": Function(i32, 0),  # of the grid
    "elected": Function(boolean, 0, "warp"),  # true in one lane
    # Lanes exchange.
    "shuffle_xor": Function(None, 2, "warp"),
    "shuffle_up": Function(None, 2, "warp"),
    "shuffle": Function(None, 2, "warp"),
    # Two f32 (low, high) as bf16 or f16 in a word, and back.
    "pack_bf16x2": Function(u32, 2),
    "pack_f16x2": Function(u32, 2),
    "low_bf16": Function(f32, 1),
    "high_bf16": Function(f32, 1),
    "low_f16": Function(f32, 1),
    "high_f16": Function(f32, 1),
    # An fp8 number by its bits, and back (rounded to nearest even, at most the largest).
    "wide_e4m3": Function(f32, 1),
    "wide_e5m2": Function(f32, 1),
    "narrow_e4m3": Function(u32, 1),
    "narrow_e5m2": Function(u32, 1),
    # Fast math of f32: ex2.approx.ftz, and a * b + c in one rounding.
    "exp2_fast": Function(f32, 1),
    "fma": Function(f32, 3),
    "zero": Function(
        f32, 0
    ),  # 0 of which the assembler does not know that: it may not move it into a chain of products
}


@dataclass(frozen=True, slots=True)
class Access:
    """operand: position. proxy: "generic" or "async". What an access may touch beside: see each instruction."""

    operand: int
    proxy: str = "generic"


@dataclass(frozen=True, slots=True)
class Instruction:
    """operands: for each its kind: "value", "registers", "address" (shared), "barrier", "map", "descriptor" (an address
    from which the emitter encodes a wgmma matrix descriptor by the attributes), "global" (element of a tensor).
    attributes: names of the constants it carries.
    together: whose threads execute it as one: "thread", "warp", "warpgroup", "block", "cluster".
    reads, writes: memory it touches. joins: the group of asynchronous work it adds to; commits, awaits likewise.
    barrier: what it does to its barrier operand: "init", "expect" (arrive and expect bytes), "arrive", "wait",
    "complete" (bytes, when done). fence: which later accesses it orders after which earlier ones.
    """

    operands: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    together: str = "thread"
    reads: tuple[Access, ...] = ()
    writes: tuple[Access, ...] = ()
    joins: str = ""
    commits: str = ""
    awaits: str = ""
    barrier: str = ""
    fence: str = ""


OPS: dict[str, Instruction] = {
    # mbarriers: init by one thread with the count of its Alloc; wait until the phase of parity `value` is complete.
    "barrier_init": Instruction(("barrier",), barrier="init"),
    "barrier_init_fence": Instruction((), fence="barrier init to async and cluster"),
    "barrier_expect": Instruction(("barrier", "value"), barrier="expect"),
    "barrier_arrive": Instruction(("barrier",), barrier="arrive"),
    "barrier_arrive_remote": Instruction(("barrier", "value"), barrier="arrive"),  # value: rank in the cluster
    "barrier_wait": Instruction(("barrier", "value"), barrier="wait"),
    # TMA. Coordinates fastest first, as many as the map has dims. Multicast: a mask of ranks, 0 for this block only.
    # hint: "", "evict_first", "evict_last".
    "tma_prefetch": Instruction(("map",)),
    "tma_load": Instruction(
        ("address", "map", "barrier", "value..."), ("multicast", "hint"), writes=(Access(0, "async"),), barrier="complete"
    ),
    "tma_store": Instruction(("map", "address", "value..."), ("hint",), reads=(Access(1, "async"),), joins="bulk"),
    "tma_reduce_add": Instruction(("map", "address", "value..."), (), reads=(Access(1, "async"),), joins="bulk"),
    "bulk_commit": Instruction((), commits="bulk"),
    "bulk_wait": Instruction((), ("pending", "read_only"), awaits="bulk"),
    # cp.async of 4, 8 or 16 bytes; value: bytes really read, the rest is 0.
    "cp_async": Instruction(("address", "global", "value"), ("bytes",), writes=(Access(0),), joins="cp_async"),
    "cp_async_commit": Instruction((), commits="cp_async"),
    "cp_async_wait": Instruction((), ("pending",), awaits="cp_async"),
    "cp_async_arrive": Instruction(("barrier",), barrier="arrive"),  # when this thread's copies are done (noinc)
    # wgmma m64 n k16 (k32 of 8-bit types): d registers, a and b descriptors or a registers, value: 0 clears d first.
    # a_major, b_major: "k" or "mn"; *_swizzle: 128, 64, 32, 0; *_leading, *_stride: byte offsets (LBO, SBO).
    "wgmma": Instruction(
        ("registers", "descriptor", "descriptor", "value"),
        ("n", "a_type", "b_type", "a_major", "b_major", "a_swizzle", "b_swizzle", "a_leading", "b_leading", "a_stride",
         "b_stride"),
        "warpgroup", reads=(Access(1, "async"), Access(2, "async")), joins="wgmma",
    ),
    "wgmma_registers": Instruction(
        ("registers", "registers", "descriptor", "value"),
        ("n", "a_type", "b_type", "b_major", "b_swizzle", "b_leading", "b_stride"),
        "warpgroup", reads=(Access(2, "async"),), joins="wgmma",
    ),
    "wgmma_fence": Instruction((), together="warpgroup", fence="registers to wgmma"),
    "wgmma_commit": Instruction((), together="warpgroup", commits="wgmma"),
    "wgmma_wait": Instruction((), ("pending",), "warpgroup", awaits="wgmma"),
    # Matrices of 8 x 8 16-bit numbers between registers and shared memory; count 1, 2, 4; each lane gives a row.
    "ldmatrix": Instruction(("registers", "address"), ("count", "transpose"), "warp", reads=(Access(1),)),
    "stmatrix": Instruction(("address", "registers"), ("count", "transpose"), "warp", writes=(Access(0),)),
    # mma.sync m16n8 (sm_80 and later): d, a, b registers; c is d.
    "mma": Instruction(("registers", "registers", "registers"), ("k", "a_type", "b_type"), "warp"),
    # Vectors between registers and memory: bytes 4, 8 or 16.
    "load_shared": Instruction(("registers", "address"), ("bytes",), reads=(Access(1),)),
    "store_shared": Instruction(("address", "registers"), ("bytes",), writes=(Access(0),)),
    "load_global": Instruction(("registers", "global"), ("bytes", "hint")),
    "store_global": Instruction(("global", "registers"), ("bytes", "hint")),
    "reduce_add_global": Instruction(("global", "registers"), ("bytes",)),
    # Order.
    "fence_async": Instruction((), fence="generic to async, shared memory"),
    "sync": Instruction(("value", "value"), together="thread"),  # named barrier: id, threads; 0 is the block's own
    "arrive": Instruction(("value", "value"), together="thread"),
    "sync_warp": Instruction((), together="warp"),
    "cluster_sync": Instruction((), together="cluster"),
    "set_registers": Instruction((), ("count", "grow"), "warpgroup"),
    "launch_dependents": Instruction(()),
    "wait_dependencies": Instruction(()),
    # Anything else: text with %0, %1 ... for operands. The simulator refuses it.
    "ptx": Instruction(("value...",), ("text",)),
}  # fmt: skip
