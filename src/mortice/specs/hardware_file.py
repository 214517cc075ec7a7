"""Reads a hardware file (YAML) into a `HardwareSpec`, and a rack file into a `RackSpec`.

Figures are quantities with units (specs/quantity.py). A file says `per: package` or `per: die`, every peak says
`dense`, `sparse` or `unstated`, every link says `uni` (one direction) or `bidi` (both directions added), so no
figure can be taken for twice or half of what it is.
"""

from typing import Any, Literal

import msgspec

from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec, Link, Price, PriceStatus, RackSpec, Status, TierName
from mortice.specs.quantity import quantity

MAX_NAME = 80
ROUNDING = 0.015  # a stated rack total has two digits: 8 EFLOP/s for 7.92
DTYPES = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp6", "fp4", "int4")


class MemoryFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    size: str
    bandwidth: str


class TileFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    attention_rows: int = 1
    gemm: tuple[int, int] = (1, 1)


class LinkFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tier: TierName
    bandwidth: str
    span: int = 0
    latency: str = "0 us"
    duplex: bool = True
    efficiency: float | None = None
    multicast: bool = False
    note: str = ""


class PriceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    value: str
    source: str
    status: PriceStatus = "user"
    date: str = ""


class HardwareFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The schema of a hardware file, field by field."""

    name: str
    per: Literal["package", "die"]
    architecture: str
    peaks: dict[str, str]
    memory: MemoryFile
    title: str = ""
    status: Status = "claim"
    date: str = ""
    source: str = ""
    dies_per_package: int = 1
    packages_per_node: int = 1
    tiles: TileFile = TileFile()
    exponentials: str | None = None
    links: tuple[LinkFile, ...] = ()
    price: PriceFile | None = None
    notes: tuple[str, ...] = ()


class RackFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The schema of a rack file. `parts` counts packages or dies and says which: `72 packages`, `144 dies`."""

    name: str
    parts: dict[str, str]
    title: str = ""
    status: Status = "claim"
    date: str = ""
    source: str = ""
    stated: dict[str, str] = {}
    discrepancies: dict[str, str] = {}
    extra_memory: str = "0 B"
    domain: str = ""
    notes: tuple[str, ...] = ()


def convert(values: Any, schema: type[Any], where: str) -> Any:
    """`values` as `schema`; RequestError with one line that names the field otherwise."""
    try:
        return msgspec.convert(values, schema)
    except msgspec.ValidationError as error:
        raise RequestError(f"{where}: {error}", param=where) from error


def read_hardware(values: dict[str, Any]) -> HardwareSpec:
    """A spec from the dictionary of a hardware file. Raises RequestError naming the first wrong field."""
    file: HardwareFile = convert(values, HardwareFile, _named(values, "hardware"))
    where = file.name
    dies = _count(file.dies_per_package, f"{where}: dies_per_package")
    per = dies if file.per == "die" else 1
    peaks, sparse = _peaks(file, per)
    size, _ = quantity(file.memory.size, "B", f"{where}: memory.size")
    bandwidth, _ = quantity(file.memory.bandwidth, "B/s", f"{where}: memory.bandwidth")
    exponentials = None
    if file.exponentials is not None:
        exponentials = per * quantity(file.exponentials, "exp/s", f"{where}: exponentials")[0]
    rows, columns = file.tiles.gemm
    return HardwareSpec(
        name=file.name,
        title=file.title or file.name,
        status=file.status,
        date=file.date,
        source=file.source or "user's file",
        architecture=file.architecture,
        peaks=peaks,
        sparse_peaks=sparse,
        memory_bytes=size * per,
        memory_bytes_per_s=bandwidth * per,
        links=tuple(_link(link, per, f"{where}: links[{i}]") for i, link in enumerate(file.links)),
        dies_per_package=dies,
        packages_per_node=_count(file.packages_per_node, f"{where}: packages_per_node"),
        tile_rows=_count(file.tiles.attention_rows, f"{where}: tiles.attention_rows"),
        gemm_tile=(_count(rows, f"{where}: tiles.gemm"), _count(columns, f"{where}: tiles.gemm")),
        exp_per_s=exponentials,
        price=_price(file.price, where),
        notes=file.notes,
    )


def _named(values: dict[str, Any], kind: str) -> str:
    """What a file calls itself, for messages before it is known to be right."""
    name = values.get("name")
    if name is not None and (not isinstance(name, str) or not 0 < len(name) <= MAX_NAME):
        raise RequestError(f"{kind}: name must be text of 1 to {MAX_NAME} characters", param="name")
    return name or kind


def _peaks(file: HardwareFile, per: int) -> tuple[dict[str, float], dict[str, float]]:
    """Dense peaks, and those that are sparse or not said to be dense, per package."""
    dense: dict[str, float] = {}
    sparse: dict[str, float] = {}
    for key, text in file.peaks.items():
        dtype = key.removesuffix("_sparse")
        field = f"{file.name}: peaks.{key}"
        if dtype not in DTYPES:
            raise RequestError(f"{field} is no dtype; known are {', '.join(DTYPES)}", param=field)
        value, kind = quantity(text, "FLOP/s", field, ("dense", "sparse", "unstated"))
        if key.endswith("_sparse") and kind == "dense":
            raise RequestError(f"{field} says dense: write it as peaks.{dtype}", param=field)
        (dense if kind == "dense" else sparse)[dtype] = value * per
    for dtype, value in sparse.items():
        if dtype in dense and value < dense[dtype]:
            raise RequestError(
                f"{file.name}: peaks.{dtype} dense is above its sparse figure; they look swapped",
                param=f"peaks.{dtype}",
            )
    if not dense and not sparse:
        raise RequestError(f"{file.name}: peaks is empty", param="peaks")
    _check_ladder(file.name, dense)
    return dense, sparse


def _check_ladder(name: str, dense: dict[str, float]) -> None:
    """Halving the bits at most doubles a tensor unit's rate (FP4 trebled FP8 once, on Blackwell Ultra): a bigger
    step is a sparse figure among dense ones."""
    for wide, narrow, most in (("bf16", "fp8", 2.1), ("bf16", "int8", 2.1), ("fp8", "fp4", 3.1)):
        if wide in dense and narrow in dense and dense[narrow] > most * dense[wide]:
            factor = dense[narrow] / dense[wide]
            raise RequestError(
                f"{name}: peaks.{narrow} is {factor:.1f} times peaks.{wide}: it looks like a sparse figure; "
                "write it with `sparse` after the unit",
                param=f"peaks.{narrow}",
            )


def _link(link: LinkFile, per: int, field: str) -> Link:
    rate, direction = quantity(link.bandwidth, "B/s", f"{field}.bandwidth", ("uni", "bidi"))
    if link.efficiency is not None and not 0 < link.efficiency <= 1:
        raise RequestError(f"{field}.efficiency is a share above 0 and up to 1", param=field)
    if link.span < 0 or link.span == 1:
        raise RequestError(f"{field}.span counts packages: 2 or more, or 0 for any number", param=field)
    return Link(
        tier=link.tier,
        bytes_per_s=per * rate / (2 if direction == "bidi" else 1),
        span=link.span,
        latency_s=quantity(link.latency, "s", f"{field}.latency", zero=True)[0],
        duplex=link.duplex,
        efficiency=link.efficiency,
        multicast=link.multicast,
        note=link.note,
    )


def _price(price: PriceFile | None, where: str) -> Price | None:
    if price is None:
        return None
    value, _ = quantity(price.value, "USD/h", f"{where}: price.value")
    return Price(usd_per_hour=value, status=price.status, source=price.source, date=price.date)


def _count(value: int, field: str) -> int:
    if value < 1:
        raise RequestError(f"{field} must be at least 1, got {value}", param=field)
    return value


def read_rack(values: dict[str, Any], hardware: dict[str, HardwareSpec]) -> RackSpec:
    """A rack from its file; every stated total must be within 1.5 % of what the parts sum to, or be listed under
    `discrepancies`. That is what finds a count of dies multiplied by a figure per package."""
    file: RackFile = convert(values, RackFile, _named(values, "rack"))
    if not file.parts:
        raise RequestError(
            f"{file.name}: parts is empty; it counts packages or dies by hardware", param="parts"
        )
    if file.domain and file.domain not in file.parts:
        raise RequestError(
            f"{file.name}: domain {file.domain!r} is none of its parts: {', '.join(file.parts)}",
            param="domain",
        )
    parts: dict[str, int] = {}
    for name, text in file.parts.items():
        field = f"{file.name}: parts.{name}"
        if name not in hardware:
            raise RequestError(f"{field} is no known hardware", param=field)
        number, unit = quantity(text, "count", field)
        dies = hardware[name].dies_per_package
        if unit.startswith("die") and number % dies:
            raise RequestError(f"{field}: {text} do not fill packages of {dies} dies", param=field)
        parts[name] = int(number) // dies if unit.startswith("die") else int(number)
    extra, _ = quantity(file.extra_memory, "B", f"{file.name}: extra_memory", zero=True)
    totals = _totals(parts, hardware, extra)
    stated = {key: _stated(text, key, file.name) for key, text in file.stated.items()}
    for key, value in stated.items():
        if key in file.discrepancies:
            continue
        if key not in totals or abs(totals[key] / value - 1) > ROUNDING:
            ours = f"{totals[key]:.4g}" if key in totals else "unknown"
            counts = ", ".join(f"{count} packages of {name}" for name, count in parts.items())
            raise RequestError(
                f"{file.name}: stated.{key} is {value:.4g}, but {counts} sum to {ours}: "
                "check whether `parts` counts dies or packages",
                param=f"stated.{key}",
            )
    return RackSpec(
        name=file.name,
        title=file.title or file.name,
        status=file.status,
        date=file.date,
        source=file.source or "user's file",
        parts=parts,
        totals=totals,
        stated=stated,
        discrepancies=file.discrepancies,
        extra_memory_bytes=extra,
        domain=file.domain,
        notes=file.notes,
    )


def _totals(parts: dict[str, int], hardware: dict[str, HardwareSpec], extra: float) -> dict[str, float]:
    """Sums over the packages; peaks count what the vendor counts, sparse or unstated where there is such a
    figure."""
    totals: dict[str, float] = {"memory": extra, "bandwidth": 0.0, "scale_up": 0.0}
    for name, count in parts.items():
        spec = hardware[name]
        totals["memory"] += count * spec.memory_bytes
        totals["bandwidth"] += count * spec.memory_bytes_per_s
        if spec.has_link("domain"):
            totals["scale_up"] += 2 * count * spec.link("domain").bytes_per_s
        for dtype, peak in (spec.peaks | spec.sparse_peaks).items():
            totals[dtype] = totals.get(dtype, 0.0) + count * peak
    return totals


def _stated(text: str, key: str, name: str) -> float:
    field = f"{name}: stated.{key}"
    if key == "memory":
        return quantity(text, "B", field)[0]
    if key == "bandwidth":
        return quantity(text, "B/s", field)[0]
    if key == "scale_up":
        return quantity(text, "B/s", field, ("bidi",))[0]
    if key not in DTYPES:
        raise RequestError(f"{field}: known are memory, bandwidth, scale_up and dtypes", param=field)
    return quantity(text, "FLOP/s", field, ("dense", "sparse", "unstated"))[0]
