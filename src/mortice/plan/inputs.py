"""What a question is asked about: models, hardware, prices, a workload; and what was assumed where nothing was said."""

import math
from collections.abc import Iterable, Mapping

import msgspec

from mortice.cost import PUBLISHED, Convention, published_hardware
from mortice.plan.answer import Assumed
from mortice.specs.catalogue import (
    hardware_names,
    load_hardware,
    load_model,
    load_rack,
    model_names,
    rack_names,
)
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec, Price, RackSpec
from mortice.specs.shape import ModelShape

# The models and the cards of Step-3's tables, in its order: what `all` means in the published convention.
STEP3_MODELS = (
    "deepseek-v3",
    "kimi-k2",
    "qwen3-235b-a22b",
    "qwen3-32b",
    "llama-4-maverick",
    "minimax-m1",
    "ernie-4.5-300b",
    "pangu-pro-moe",
    "step-3",
)
STEP3_HARDWARE = ("h800", "h20", "a800", "ascend-910b")
MAX_NAMES = 64
MAX_CONTEXT = 100_000_000
MAX_TPOT_MS = 10_000


def models(names: str, rule: Convention) -> list[ModelShape]:
    """Comma-separated names, paths of config files or folders, or `all`."""
    every = STEP3_MODELS if rule is PUBLISHED else tuple(model_names())
    return [load_model(name) for name in _split(names, every, "model")]


def one_model(name: str) -> ModelShape:
    found = _split(name, tuple(model_names()), "model")
    if len(found) != 1:
        raise RequestError("model: this question is about one model", param="model")
    return load_model(found[0])


def hardware(names: str, rule: Convention, prices: Mapping[str, float] | None = None) -> list[HardwareSpec]:
    """Comma-separated names or paths, or `all`; with the user's own prices in USD an hour where given."""
    every = STEP3_HARDWARE if rule is PUBLISHED else tuple(hardware_names())
    load = published_hardware if rule is PUBLISHED else load_hardware
    found = [load(name) for name in _split(names, every, "hardware")]
    return priced(found, prices or {})


def priced(found: Iterable[HardwareSpec], prices: Mapping[str, float]) -> list[HardwareSpec]:
    """With the user's prices. Raises RequestError for a price of a device that is not compared."""
    devices = list(found)
    known = {device.name for device in devices}
    for name, usd in prices.items():
        if name not in known:
            raise RequestError(
                f"price is given for {name}, which is not among {', '.join(sorted(known))}", param="price"
            )
        if not (math.isfinite(usd) and usd > 0):
            raise RequestError(f"price of {name} must be above 0 USD an hour, not {usd:g}", param="price")
    return [
        msgspec.structs.replace(d, price=Price(usd_per_hour=prices[d.name], status="user", source="given"))
        if d.name in prices
        else d
        for d in devices
    ]


def parse_prices(texts: Iterable[str]) -> dict[str, float]:
    """`NAME=USD` of each option."""
    prices = {}
    for text in texts:
        name, equals, usd = text.partition("=")
        try:
            prices[name] = float(usd)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise RequestError(f"price must be NAME=USD_PER_HOUR, got {text!r}", param="price")
    return prices


def contexts(text: str) -> list[int]:
    """Comma-separated token counts; 8K is 8192, 1M is 1,000,000."""
    return [context(part) for part in text.split(",")]


def context(text: str) -> int:
    """One token count: `4096`, `32K` (x 1024), `1M` (x 10^6)."""
    clean = text.strip()
    factor = {"K": 1024, "k": 1024, "M": 1_000_000, "m": 1_000_000}.get(clean[-1:], 1)
    digits = clean[:-1] if factor != 1 else clean
    try:
        value = round(float(digits) * factor)
    except (ValueError, OverflowError):
        raise RequestError(
            f"context must be tokens like 8192, 32K or 1M, got {text!r}", param="context"
        ) from None
    if not 1 <= value <= MAX_CONTEXT:
        raise RequestError(f"context must be 1 to {MAX_CONTEXT:,} tokens, got {text}", param="context")
    return value


def tpot_s(milliseconds: float) -> float:
    """Seconds a token may take."""
    if not 0 < milliseconds < MAX_TPOT_MS:
        raise RequestError(
            f"tpot must be above 0 and below {MAX_TPOT_MS:,} ms, not {milliseconds:g}", param="tpot"
        )
    return milliseconds / 1e3


def racks(names: str) -> list[RackSpec]:
    return [load_rack(name) for name in _split(names, tuple(rack_names()), "rack")]


def device_assumptions(devices: Iterable[HardwareSpec], *, prices: bool = True) -> tuple[Assumed, ...]:
    """Figures that are estimates, claims or announcements: said wherever they are used."""
    said = []
    for device in devices:
        if device.status != "measured":
            said.append(Assumed(f"{device.name}.peaks", f"{device.status} of {device.date}", device.source))
            said += [Assumed(f"{device.name}.note", note, "the catalogue") for note in device.notes]
        if prices and device.price is not None and device.price.status != "user":
            kind = "estimate" if device.price.status == "estimate" else "published"
            said.append(
                Assumed(
                    f"{device.name}.price",
                    f"{device.price.usd_per_hour:g} USD/h, {kind}",
                    device.price.source,
                )
            )
    return tuple(said)


def model_assumptions(shapes: Iterable[ModelShape]) -> tuple[Assumed, ...]:
    """What a config left open and how it was read."""
    return tuple(
        Assumed(f"{shape.name}.config", line, "the file does not say")
        for shape in shapes
        for line in shape.assumed
    )


def require_prices(devices: Iterable[HardwareSpec]) -> None:
    """Raise a RequestError for the first device without a price."""
    for device in devices:
        if device.price is None:
            raise RequestError(
                f"{device.name} has no price: give --price {device.name}=USD_PER_HOUR, or a file with `base: "
                f"{device.name}` and `price`",
                param="price",
            )


def _split(names: str, every: tuple[str, ...], field: str) -> list[str]:
    parts = [part.strip() for part in names.split(",") if part.strip()]
    if not parts:
        raise RequestError(f"{field} is missing; give names separated by commas, or all", param=field)
    wanted = [name for part in parts for name in (every if part == "all" else (part,))]
    unique = list(dict.fromkeys(wanted))
    if len(unique) > MAX_NAMES:
        raise RequestError(f"{field}: at most {MAX_NAMES} at once, got {len(unique)}", param=field)
    return unique
