"""How things are counted. `PUBLISHED` is how the Step-3 paper counted (every printed cell follows); `HONEST` counts
what a kernel does."""

import msgspec

from mortice.specs.errors import RequestError


class Convention(msgspec.Struct, frozen=True, kw_only=True):
    """Switches of the accounting; each is a place where two papers differ."""

    name: str
    mla_value_as_cached: bool  # MLA's value product at rank + rope (576), not at the rank (512) it needs
    hybrid_full_kv_dtype: str | None  # KV of the full layers of a hybrid stack; None: the common KV dtype
    count_head: bool  # the LM head is part of the linears
    count_router: bool  # the routers too
    causal_half: bool  # prefill and training attend to the past alone, half of the square
    kernel_shares: bool  # a token costs what kernels take for it, not the roofline
    pad_tiles: bool  # query rows are padded to the hardware's matrix tile
    linear_state_flops: float = (
        10.0  # FLOP an element of a linear-attention state (inferred from Step-3, Table 2)
    )


PUBLISHED = Convention(
    name="published",
    mla_value_as_cached=True,
    hybrid_full_kv_dtype="bf16",
    count_head=False,
    count_router=False,
    causal_half=False,
    kernel_shares=False,
    pad_tiles=False,
)
HONEST = Convention(
    name="honest",
    mla_value_as_cached=False,
    hybrid_full_kv_dtype=None,
    count_head=True,
    count_router=True,
    causal_half=True,
    kernel_shares=True,
    pad_tiles=True,
)


def convention(name: str) -> Convention:
    """By name; RequestError for another one."""
    for each in (PUBLISHED, HONEST):
        if each.name == name:
            return each
    raise RequestError(f"convention {name!r} is not known; it is published or honest", param="convention")
