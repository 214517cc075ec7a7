"""The kinds of GPU that code is made for."""

from dataclasses import dataclass

from mortice.tile.diagnostics import UnsupportedError
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk


@dataclass(frozen=True, slots=True)
class Card:
    """shared_bytes: of one block, opted in. hopper: has wgmma, the copy engine, barriers in shared memory and launches
    that depend on one another; else products are `mma` of warps and copies ahead are cp.async."""

    name: str
    shared_bytes: int
    hopper: bool


SM_90A = Card("sm_90a", 232448, True)
SM_80 = Card("sm_80", 166912, False)  # and later ones: what it knows, all know

SINCE_SM_80 = frozenset({
    "cp_async", "cp_async_commit", "cp_async_wait", "ldmatrix", "mma", "load_shared", "store_shared", "load_global",
    "store_global", "reduce_add_global", "sync", "arrive", "sync_warp", "ptx",
})  # fmt: skip
SINCE_SM_90 = frozenset({"elected", "cluster_rank"})  # functions


def check_instructions(launch: s.Launch, card: Card) -> None:
    """Of code written for threads. Raises UnsupportedError at the first that the card does not have."""
    if card.hopper:
        return
    if launch.cluster > 1:
        raise UnsupportedError(
            launch.span, "grid", f"{card.name} has no clusters of blocks", "run it on a Hopper card"
        )
    for node in walk(launch):
        name = ""
        if (isinstance(node, s.Op) and node.name not in SINCE_SM_80) or (
            isinstance(node, e.Call) and node.name in SINCE_SM_90
        ):
            name = node.name
        if isinstance(node, s.Roles):
            name = "role"
        if name:
            raise UnsupportedError(
                node.span, name, f"{card.name} has no such instruction", "run it on a Hopper card"
            )
