"""What a device is: dense peaks, memory, links, price, tile sizes, and how far each figure can be trusted.

All figures are per *package*, what a user buys and schedules, in base units; `read_hardware`
(specs/hardware_file.py) turns a file whose figures are per die into this form. Peaks are dense: a peak that is
known with structured sparsity only is kept apart and never used as a dense one.
"""

from typing import Literal

import msgspec

from mortice.specs.errors import RequestError

Status = Literal["measured", "claim", "announced", "withdrawn", "rumoured"]
TierName = Literal["package", "node", "domain", "scale_out", "host"]
PriceStatus = Literal["published", "estimate", "user"]


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """USD for one package and one hour; `estimate` is said wherever the price is used."""

    usd_per_hour: float
    status: PriceStatus
    source: str
    date: str = ""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One tier of network as one package sees it."""

    tier: TierName
    bytes_per_s: float  # peak, one direction, one package
    span: int  # packages that share the tier; 0: any number (scale-out)
    latency_s: float = 0.0  # of one message
    duplex: bool = True  # both directions at once, at that rate each
    efficiency: float | None = None  # achieved share of the peak for large messages; None: not measured
    multicast: bool = False  # the switch can copy and reduce (NVLS and the like)
    note: str = ""


class HardwareSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of accelerator or CPU, per package."""

    name: str
    title: str
    status: Status
    date: str  # ISO date at which the figures were true
    source: str
    architecture: str  # family of kernels: sm80, sm89, sm90, sm100, sm103, rubin, ascend, x86, arm ...
    peaks: dict[str, float]  # dense FLOP/s by dtype: fp32, tf32, bf16, fp8, int8, fp4, ...
    memory_bytes: float
    memory_bytes_per_s: float
    links: tuple[Link, ...] = ()
    sparse_peaks: dict[str, float] = {}  # with structured sparsity, or sparsity not stated; never priced
    dies_per_package: int = 1
    packages_per_node: int = 1
    tile_rows: int = 1  # rows of the matrix tile that an attention kernel fills with query heads
    gemm_tile: tuple[int, int] = (1, 1)  # rows and columns of the tile a matrix product is padded to
    exp_per_s: float | None = None  # exponentials, the bound on softmax; None: not known
    price: Price | None = None
    notes: tuple[str, ...] = ()

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s at `dtype`. Raises RequestError if there is none: also where only a sparse one is known."""
        if dtype in self.peaks:
            return self.peaks[dtype]
        if dtype in self.sparse_peaks:
            raise RequestError(
                f"{self.name}: peaks.{dtype} is known with sparsity (or not said to be dense); "
                "a dense figure is needed",
                param=f"peaks.{dtype}",
            )
        known = ", ".join(self.peaks)
        raise RequestError(f"{self.name} has no {dtype} arithmetic; it has {known}", param=f"peaks.{dtype}")

    def link(self, tier: TierName) -> Link:
        """The link of that tier. Raises RequestError if the device has none."""
        for link in self.links:
            if link.tier == tier:
                return link
        known = ", ".join(link.tier for link in self.links) or "none"
        raise RequestError(f"{self.name} has no {tier} link; its links: {known}", param=f"links.{tier}")

    def has_link(self, tier: TierName) -> bool:
        return any(link.tier == tier for link in self.links)

    def reach(self, packages: int) -> Link:
        """The fastest link that joins so many packages: node or domain while they fit, else scale-out."""
        for link in sorted(self.links, key=lambda link: -link.bytes_per_s):
            if link.tier in ("node", "domain", "scale_out") and (link.span == 0 or link.span >= packages):
                return link
        raise RequestError(
            f"{self.name}: no link joins {packages} packages; add links.scale_out", param="links.scale_out"
        )

    @property
    def usd_per_second(self) -> float:
        """Price of one package. Raises RequestError where no price is known."""
        if self.price is None:
            raise RequestError(
                f"{self.name} has no price: give it in a file with `base: {self.name}` and `price`",
                param="price",
            )
        return self.price.usd_per_hour / 3600

    def ridge(self, dtype: str) -> float:
        """FLOP a byte of memory at which arithmetic and memory take the same time (the roofline's corner)."""
        return self.peak(dtype) / self.memory_bytes_per_s


class RackSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A supernode: packages joined in one scale-up domain, and the totals that its vendor states."""

    name: str
    title: str
    status: Status
    date: str
    source: str
    parts: dict[str, int]  # hardware name -> packages
    totals: dict[str, float]  # what our figures sum to, by quantity (fp4, memory_bytes, ...)
    stated: dict[str, float]  # what the vendor says
    discrepancies: dict[str, str] = {}  # quantities whose two figures are known to differ, and why
    extra_memory_bytes: float = 0.0  # CPU memory that the vendor counts as fast memory
    domain: str = ""  # hardware whose packages share the scale-up network
    notes: tuple[str, ...] = ()

    @property
    def packages(self) -> int:
        return sum(self.parts.values())
