"""What the tiling of level 1 supposes of a machine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Blocking:
    """A product's tiles, for up to `rows` rows of the result (None: any number)."""

    rows: int | None
    m: int
    n: int
    k: int
    stages: int


@dataclass(frozen=True, slots=True)
class Machine:
    """products: ascending by rows. thin: results of so few rows or columns are no product of tiles but many dot products.
    vectors: a loop over consecutive elements is one instruction stream (a CPU); without, threads share out a tile.
    matrix_types: element types whose products have a unit; the others' go through f32, or through no tiles.
    """

    name: str
    products: tuple[Blocking, ...]
    thin: int
    vectors: bool
    matrix_types: frozenset[str]
    width: int  # elements of a block's share of the innermost loop


CPU = Machine(
    "cpu",
    (Blocking(64, 32, 512, 256, 2), Blocking(None, 256, 512, 256, 2)),
    thin=4,
    vectors=True,
    matrix_types=frozenset({"f32", "bf16", "f16", "e4m3", "e5m2"}),
    width=8192,
)
GPU = Machine(
    "gpu",
    (Blocking(None, 128, 256, 64, 4),),
    thin=0,
    vectors=False,
    matrix_types=frozenset({"bf16", "f16", "e4m3", "e5m2"}),
    width=256,
)
