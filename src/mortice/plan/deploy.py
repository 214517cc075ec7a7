"""`plan deploy`: how many prefill and decode workers, or none of the cut, and the document that `serve` and `sim` read.

A worker is one package with the whole model, as `serve` runs it. Waiting for prefill is that of an M/D/1 queue
(DistServe, arXiv 2401.09670, section 3); decode batches follow Little's law. Both sides of the comparison get the same
queue and the same kernels.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from mortice.cost import Formats, Layout, Links, decode_step, kv_cache_bytes, max_batch, prefill_step
from mortice.plan.answer import Answer, Assumed, Bars, Column, Table
from mortice.plan.inputs import device_assumptions, model_assumptions
from mortice.plan.kv import smallest_layout, transfer_s
from mortice.plan.measured import MODELLED, Measured
from mortice.plan.words import seconds
from mortice.specs.deployment import Deployment, EngineLimits, dump_deployment
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape
from mortice.specs.slo import SLO

SERVED_WEIGHTS: dict[str, Literal["none", "int8", "int4"]] = {"bf16": "none", "int8": "int8", "int4": "int4"}
MAX_PACKAGES = 64  # workers of one host
TOKEN_BUDGET = 512  # tokens in one step of a worker that does both
SAME = 0.02  # goodputs within two per cent are called equal
ONE = Layout()


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Requests a second (None: as many as the SLO allows) of fixed lengths, and what must be met."""

    prompt_len: int = 1024
    output_len: int = 128
    rate: float | None = None
    slo: SLO = SLO(ttft_ms=500, tpot_ms=50)

    def check(self) -> None:
        """Raise RequestError naming the first field that makes no sense."""
        for name in ("prompt_len", "output_len"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1 token, not {getattr(self, name)}", param=name)
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise RequestError(f"rate must be above 0 requests a second, not {self.rate:g}", param="rate")
        self.slo.check()
        if not self.slo.limits():
            raise RequestError("slo: give at least one of ttft, tpot and e2e", param="slo")


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What requests feel at a rate."""

    rate: float  # requests a second of the whole deployment
    ttft_s: float  # at the SLO's target share
    tpot_s: float
    e2e_s: float
    batch: float  # sequences that one decode worker holds
    stable: bool

    def meets(self, slo: SLO) -> bool:
        return self.stable and not slo.missed(
            ttft_ms=self.ttft_s * 1e3, tpot_ms=self.tpot_s * 1e3, e2e_ms=self.e2e_s * 1e3
        )


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """A division of packages, its goodput and its load at the asked (or the largest) rate. prefill 0: no cut."""

    prefill: int
    decode: int
    goodput: float  # largest rate that meets the SLO, requests a second
    load: Load

    @property
    def packages(self) -> int:
        return self.prefill + self.decode

    @property
    def name(self) -> str:
        return f"{self.prefill}P{self.decode}D" if self.prefill else f"{self.decode} together"


class Workers:
    """Times of one worker under this traffic."""

    def __init__(
        self,
        model: ModelShape,
        device: HardwareSpec,
        traffic: Traffic,
        formats: Formats,
        measured: Measured = MODELLED,
    ) -> None:
        self.model, self.device, self.traffic, self.formats = model, device, traffic, formats
        self.kernels = measured.kernels(device)
        if formats.weights not in SERVED_WEIGHTS:
            raise RequestError(
                f"weights: serve runs {', '.join(SERVED_WEIGHTS)}, not {formats.weights}", param="weights"
            )
        if formats.kv != "bf16":
            raise RequestError(f"kv: serve keeps KV in bf16, not {formats.kv}", param="kv")
        self.context = traffic.prompt_len + traffic.output_len / 2
        longest = traffic.prompt_len + traffic.output_len
        tp = int(smallest_layout(model, device, longest, formats).packages)
        if tp > 1:
            raise RequestError(
                f"model: {model.name} in {formats.weights} needs {tp} x {device.name}; serve runs one package a worker: "
                "use a smaller dtype, or hardware with more memory",
                param="model",
            )
        self.room = int(float(max_batch(model, device, ONE, longest, formats)))
        self._batches = np.unique(np.geomspace(1, self.room, 128).round())
        self._steps = np.asarray(
            decode_step(model, self.kernels, ONE, self._batches, self.context, formats=formats).total_s
        )
        self.prefill_s = float(
            prefill_step(model, self.kernels, ONE, traffic.prompt_len, formats=formats).total_s
        )
        link = next(
            (each for each in device.links if each.tier in ("domain", "node", "scale_out", "host")), None
        )
        moved = float(kv_cache_bytes(model, traffic.prompt_len, formats.kv))
        # Without a link the workers share one memory: a copy at its bandwidth.
        rate = link.bytes_per_s * Links(device).attained(link) if link else device.memory_bytes_per_s / 2
        self.transfer_s = transfer_s(moved, rate, link.latency_s if link else 0.0)

    def decode_s(self, batch: float) -> float:
        """Seconds of a step, between the batches that were priced."""
        return float(np.interp(batch, self._batches, self._steps))

    def apart(self, prefill: int, decode: int, rate: float) -> Load:
        """Prefill workers as queues of their own, decode workers undisturbed; KV moves between."""
        wait = _wait_s(rate / prefill, self.prefill_s, self.traffic.slo.target)
        batch, tpot = self._steady(rate / decode, 0.0)
        return self._load(rate, wait + self.prefill_s, tpot, batch, extra_s=self.transfer_s)

    def together(self, workers: int, rate: float) -> Load:
        """Each worker prefills in chunks beside its decode batch: a chunk lengthens the steps it rides on."""
        mine = rate / workers
        busy = mine * self.prefill_s
        batch, tpot = self._steady(mine, busy)
        if math.isinf(batch):
            return self._load(rate, math.inf, tpot, batch)
        chunks = math.ceil(self.traffic.prompt_len / TOKEN_BUDGET)
        # A prompt's chunks each wait for the decode rows of their step; the queue is served at that pace.
        service = self.prefill_s + chunks * self.decode_s(batch)
        wait = _wait_s(mine, service, self.traffic.slo.target)
        return self._load(rate, wait + service, tpot, batch)

    def _steady(self, rate: float, busy: float) -> tuple[float, float]:
        """(batch, TPOT) where the batch is what arrives during an answer: B = rate * output * TPOT(B)."""
        if busy >= 1:
            return math.inf, math.inf
        tokens_per_s = rate * self.traffic.output_len

        def surplus(batch: float) -> float:
            return batch - tokens_per_s * self.decode_s(batch) / (1 - busy)

        high = float(self.room)
        if surplus(high) < 0:
            return math.inf, math.inf  # even a full batch falls behind
        low = 0.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if surplus(middle) < 0 else (low, middle)
        return high, self.decode_s(high) / (1 - busy)

    def _load(self, rate: float, ttft: float, tpot: float, batch: float, extra_s: float = 0.0) -> Load:
        stable = math.isfinite(ttft) and math.isfinite(tpot)
        e2e = ttft + extra_s + tpot * self.traffic.output_len
        return Load(rate=rate, ttft_s=ttft, tpot_s=tpot, e2e_s=e2e, batch=batch, stable=stable)


def _wait_s(rate: float, service_s: float, share: float) -> float:
    """Wait that `share` of requests do not exceed in an M/D/1 queue: exponential tail of the mean
    rho s / (2 (1 - rho)), which at share 1 - 1/e is the mean itself."""
    rho = rate * service_s
    if rho >= 1:
        return math.inf
    mean = rho * service_s / (2 * (1 - rho))
    return mean * max(1.0, -math.log(1 - share)) if share < 1 else mean * 10


def goodput(load_at: Callable[[float], Load], slo: SLO, start: float) -> float:
    """Largest rate at which `load_at(rate)` meets the SLO, to 0.5 %; 0 where none does."""
    if not load_at(start * 1e-4).meets(slo):
        return 0.0
    low, high = start * 1e-4, start
    while load_at(high).meets(slo):
        low, high = high, high * 2
    while high - low > 0.005 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if load_at(middle).meets(slo) else (low, middle)
    return low


def splits(workers: Workers, packages: int) -> list[Split]:
    """All divisions of the packages, best goodput first; the undivided one among them."""
    if not 1 <= packages <= MAX_PACKAGES:
        raise RequestError(
            f"packages must be 1 to {MAX_PACKAGES}, which serve runs on one host, not {packages}",
            param="packages",
        )
    traffic, found = workers.traffic, []
    start = packages / workers.prefill_s

    def add(prefill: int, decode: int, load_at: Callable[[float], Load]) -> None:
        best = goodput(load_at, traffic.slo, start)
        rate = traffic.rate if traffic.rate is not None else max(best, start * 1e-4)
        found.append(Split(prefill=prefill, decode=decode, goodput=best, load=load_at(rate)))

    add(0, packages, partial(workers.together, packages))
    for prefill in range(1, packages):
        add(prefill, packages - prefill, partial(workers.apart, prefill, packages - prefill))
    return sorted(found, key=lambda s: -s.goodput)


def choose(workers: Workers, packages: int | None) -> tuple[list[Split], int]:
    """Splits of the given packages, or of the fewest that meet the rate.

    Raises RequestError naming the limit that binds and the nearest feasible value.
    """
    traffic = workers.traffic
    if packages is not None:
        found = splits(workers, packages)
        _require(workers, found, packages)
        return found, packages
    if traffic.rate is None:
        raise RequestError("give packages, a rate, or both", param="packages")
    _require_possible(workers, splits(workers, 1))
    # More packages never serve less, so the fewest is found by bisection.
    low, high = 0, MAX_PACKAGES
    if (most := splits(workers, high)[0].goodput) < traffic.rate:
        raise RequestError(
            f"rate: {traffic.rate:g} requests a second need more than {high} packages; nearest feasible is {most:.3g}",
            param="rate",
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if splits(workers, middle)[0].goodput < traffic.rate else (low, middle)
    return splits(workers, high), high


def _require(workers: Workers, found: list[Split], packages: int) -> None:
    _require_possible(workers, found)
    rate = workers.traffic.rate
    if rate is not None and found[0].goodput < rate:
        raise RequestError(
            f"rate: {packages} x {workers.device.name} serve {found[0].goodput:.3g} requests a second within the SLO, "
            f"not {rate:g}; nearest feasible rate is {found[0].goodput:.3g}, or give more packages",
            param="rate",
        )


def _require_possible(workers: Workers, found: list[Split]) -> None:
    if found[0].goodput > 0:
        return
    slo, alone = workers.traffic.slo, workers.decode_s(1)
    if slo.tpot_ms is not None and alone * 1e3 > slo.tpot_ms:
        raise RequestError(
            f"tpot: nothing meets {slo.tpot_ms:g} ms; one sequence alone takes {alone * 1e3:.1f} ms a token, the nearest "
            "feasible",
            param="tpot",
        )
    if slo.ttft_ms is not None and workers.prefill_s * 1e3 > slo.ttft_ms:
        raise RequestError(
            f"ttft: nothing meets {slo.ttft_ms:g} ms; prefill of {workers.traffic.prompt_len} tokens alone takes "
            f"{workers.prefill_s * 1e3:.1f} ms, the nearest feasible",
            param="ttft",
        )
    load = found[0].load
    raise RequestError(
        f"slo: nothing meets it even without load; nearest feasible is ttft {load.ttft_s * 1e3:.1f}, tpot "
        f"{load.tpot_s * 1e3:.1f}, e2e {load.e2e_s * 1e3:.1f} ms",
        param="slo",
    )


def deployment(workers: Workers, chosen: Split, model: str) -> Deployment:
    """The document's values: workers, batch and context that the plan counted on."""
    traffic = workers.traffic
    longest = traffic.prompt_len + traffic.output_len
    batch = min(4096, max(1, math.ceil(chosen.load.batch * 1.25))) if math.isfinite(chosen.load.batch) else 64
    cpu = workers.device.architecture.startswith(("x86", "arm"))
    made = Deployment(
        model=model,
        dtype="bfloat16",
        quantize=SERVED_WEIGHTS[workers.formats.weights],
        prefill=chosen.prefill,
        decode=chosen.decode,
        device="cpu" if cpu else "cuda",
        local_prefill_tokens=64 if chosen.prefill else 0,
        limits=EngineLimits(
            max_num_seqs=batch,
            token_budget=max(TOKEN_BUDGET, batch),
            max_context=min(workers.model.max_context, 2 * longest),
        ),
    )
    made.check()
    return made


def deploy_question(
    workers: Workers, packages: int | None, served_model: str, out: Path | None
) -> tuple[Answer, str]:
    """(answer, YAML). The file is written by the caller's leave: `out` names it in the answer."""
    found, count = choose(workers, packages)
    whole = next(s for s in found if s.prefill == 0)
    cut = next((s for s in found if s.prefill > 0), None)
    disaggregate = cut is not None and cut.goodput > whole.goodput * (1 + SAME)
    best = cut if disaggregate and cut is not None else whole
    verdict = _verdict(workers, best, whole, cut)
    document = dump_deployment(deployment(workers, best, served_model))
    head = "\n".join(
        f"# {line}"
        for line in (
            f"Written by mortice plan deploy for {count} x {workers.device.name}.",
            verdict,
            f"Expected at {best.load.rate:.3g} requests/s: TTFT {best.load.ttft_s * 1e3:.1f} ms, TPOT "
            f"{best.load.tpot_s * 1e3:.1f} ms, batch {best.load.batch:.1f} a decode worker.",
        )
    )
    rows = tuple(_row(workers, s) for s in found)
    answer = Answer(
        verb="deploy",
        title=f"{workers.model.name} on {count} x {workers.device.name}",
        verdict=verdict,
        tables=(_table(rows[:10], found.index(best)),),
        charts=(
            Bars(
                title="Goodput of each division",
                x_label="requests a second within the SLO",
                labels=tuple(s.name for s in sorted(found, key=lambda s: s.prefill)[:24]),
                parts=(("goodput", tuple(s.goodput for s in sorted(found, key=lambda s: s.prefill)[:24])),),
            ),
        ),
        assumed=(
            Assumed(
                "lengths",
                f"{workers.traffic.prompt_len} in, {workers.traffic.output_len} out, all alike",
                "give a trace's means; tails make queues longer",
            ),
            Assumed("arrivals", "Poisson", "M/D/1 queue for prefill"),
            Assumed(
                "formats",
                f"weights {workers.formats.weights}, KV {workers.formats.kv}",
                "given or what the card computes in",
            ),
            Assumed("model name", served_model, "what serve is told to load"),
            Assumed(
                "slo",
                ", ".join(f"{k} {v:g}" for k, v in workers.traffic.slo.limits().items()),
                f"met by {workers.traffic.slo.target:.0%}",
            ),
            *(Assumed(a.name, a.value, a.why) for a in workers.kernels.assumptions()),
            *device_assumptions([workers.device]),
            *model_assumptions([workers.model]),
        ),
        notes=(f"written to {out}",) if out else (),
        formulas=("kv.transfer", "cost.throughput"),
        facts={
            "disaggregate": disaggregate,
            "best": _row(workers, best),
            "splits": rows,
            "prefill_s": workers.prefill_s,
            "transfer_s": workers.transfer_s,
            "deployment": msgspec.to_builtins(deployment(workers, best, served_model)),
        },
    )
    return answer, f"{head}\n{document}"


def _verdict(workers: Workers, best: Split, whole: Split, cut: Split | None) -> str:
    if cut is None:
        return "One package: nothing to divide, so do not disaggregate."
    if best is cut:
        gain = cut.goodput / whole.goodput if whole.goodput else math.inf
        how = (
            f"{gain:.2f} times"
            if math.isfinite(gain)
            else "while keeping both together meets it at no rate, against none of"
        )
        return (
            f"Disaggregate: {cut.name} serves {cut.goodput:.3g} requests/s within the SLO, {how} the "
            f"{whole.goodput:.3g} of workers that do both; moving a prompt's KV takes {seconds(workers.transfer_s)}."
        )
    loss = 1 - cut.goodput / whole.goodput
    why = (
        "whole workers cannot match the ratio of prefill to decode work"
        if whole.packages <= 8
        else "chunked prefill stays within the SLO, and an undivided pool never idles on one side"
    )
    return (
        f"Do not disaggregate: {whole.decode} workers that do both serve {whole.goodput:.3g} requests/s within the SLO; "
        f"the best cut, {cut.name}, serves {loss:.0%} less, because {why}."
    )


def _row(workers: Workers, s: Split) -> dict:
    finite = math.isfinite(s.load.tpot_s) and math.isfinite(s.load.ttft_s)
    return {
        "split": s.name,
        "prefill": s.prefill,
        "decode": s.decode,
        "goodput": s.goodput,
        "rate": s.load.rate,
        "ttft_s": s.load.ttft_s if finite else None,
        "tpot_s": s.load.tpot_s if finite else None,
        "batch": s.load.batch if finite else None,
        **_usd(workers, s),
    }


def _usd(workers: Workers, s: Split) -> dict[str, float | None]:
    """USD of 10^6 tokens of each phase at the split's rate, each over its own packages; of workers that do both, by the
    share of time that prefill takes. None without a price, or where the rate is not met."""
    rate, traffic = s.load.rate, workers.traffic
    if workers.device.price is None or not 0 < rate <= s.goodput:
        return {"usd_per_mtok_in": None, "usd_per_mtok_out": None}
    prefill = s.prefill if s.prefill else rate * workers.prefill_s
    second = workers.device.usd_per_second * 1e6 / rate
    return {
        "usd_per_mtok_in": prefill * second / traffic.prompt_len,
        "usd_per_mtok_out": (s.packages - prefill) * second / traffic.output_len,
    }


def _table(rows: tuple[dict, ...], best: int) -> Table:
    return Table(
        title="Divisions, best goodput first",
        columns=(
            Column("split", "workers"),
            Column("goodput", "goodput, req/s", "number"),
            Column("rate", "at rate", "number"),
            Column("ttft_s", "TTFT", "seconds"),
            Column("tpot_s", "TPOT", "seconds"),
            Column("batch", "batch", "number"),
            Column("usd_per_mtok_in", "USD/1M in", "usd"),
            Column("usd_per_mtok_out", "USD/1M out", "usd"),
        ),
        rows=rows,
        best=best if best < len(rows) else None,
    )
