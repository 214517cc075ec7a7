"""`plan supernode`: what a rack-scale domain is worth against boards of eight on NICs, for EP, AFD and long prefill."""

import math
from collections.abc import Sequence

import msgspec

from mortice.cost import Kernels, Links, kv_cache_bytes, prefill_flops, weight_bytes
from mortice.cost.dtypes import dtype_bytes
from mortice.plan import afd
from mortice.plan.answer import Answer, Assumed, Bars, Column, Table
from mortice.plan.context import AttentionShape, context_parallel_s, pipeline_bubble
from mortice.plan.inputs import device_assumptions, model_assumptions
from mortice.plan.measured import MODELLED
from mortice.plan.placement import formats_for, placement_table
from mortice.plan.words import scaled, seconds
from mortice.plan.words import tokens as token_words
from mortice.specs.catalogue import load_hardware
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec, RackSpec
from mortice.specs.shape import ModelShape

BOARD = 8  # packages of the scale-out system that a rack is compared with
CHUNK = 12_288  # tokens of a prefill pipeline's chunk


def on_boards(device: HardwareSpec, span: int = BOARD) -> HardwareSpec:
    """The same package with its fast network cut to boards of `span`, NICs between: what the domain is worth.

    The NIC of a Hopper board (50 GB/s, 0.8 attained) stands in where the device names none.
    """
    links = tuple(
        msgspec.structs.replace(link, tier="node", span=span) if link.tier == "domain" else link
        for link in device.links
    )
    return msgspec.structs.replace(device, name=f"{device.name}-boards", links=links, packages_per_node=span)


class LongPrefill(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt of `tokens` on all packages of a system."""

    how: str
    seconds: float
    packages: int
    flops_share: float  # of the peak that GEMMs run at
    bound: str


def attention_shape(model: ModelShape) -> AttentionShape:
    """Full-attention layers of the model as prefill runs them. Raises RequestError where there is none."""
    full = [g for g in model.groups if g.attention.kind == "full"]
    if not full:
        raise RequestError(f"model: {model.name} has no full attention layer", param="model")
    a = full[0].attention
    flops = prefill_flops(model, 1.0)
    return AttentionShape(
        num_layers=sum(g.count for g in full),
        num_heads=a.num_heads,
        qk_dim=a.head_dim,
        value_dim=a.value_dim,
        num_kv_heads=a.num_kv_heads,
        active_params=float(flops["gemm"]) / 2,
    )


def long_prefill(model: ModelShape, device: HardwareSpec, packages: int, tokens: int) -> LongPrefill:
    """Context parallelism over the system, tensor parallelism inside a board; keys and values go round the ring.

    Attention in BF16 (or the lowest dtype above it that the card has), bounded by the exponent unit where known.
    Latent attention passes the latent and expands it again on each rank, or passes expanded heads: the faster counts.
    """
    kernels, links = Kernels(device), Links(device)
    formats = formats_for(device)
    _must_hold(model, device, packages, formats.weights)
    shape = attention_shape(model)
    dtype = "bf16" if "bf16" in device.peaks else min(device.peaks, key=lambda name: -dtype_bytes(name))
    attention = device.peak(dtype) * kernels.shares.prefill_compute
    bound = "attention arithmetic"
    if device.exp_per_s:
        limit = 2.0 * (shape.qk_dim + shape.value_dim) * device.exp_per_s
        if limit < attention:
            attention, bound = limit, "exponent unit"
    gemm_peak = kernels.peak(formats.weights) if formats.weights in device.peaks else device.peak(dtype)
    gemm = gemm_peak * kernels.shares.gemm_compute
    tp = math.gcd(BOARD, shape.num_heads)
    near = max([1, *(link.span for link in device.links if link.tier in ("node", "domain"))])
    ring = device.link("domain") if near >= packages else device.link("scale_out")
    ring_rate = ring.bytes_per_s * links.attained(ring)
    a = next(g.attention for g in model.groups if g.attention.kind == "full")
    # (bytes a token and layer that go round, FLOPs of expanding them again on every rank)
    ways = {"pass-kv": (2.0 * a.kv_elements, 0.0)}
    if a.latent_rank:
        expand = 2.0 * a.latent_rank * a.num_heads * (a.head_dim - a.rope_dim + a.value_dim)
        ways = {
            "pass-latent": (2.0 * a.kv_elements, expand),
            "pass-expanded": (2.0 * a.num_heads * (a.head_dim + a.value_dim), 0.0),
        }
    runs = []
    for name, (moved, again) in ways.items():
        num_cp = max(1, packages // tp)
        run = context_parallel_s(
            shape,
            tokens=tokens,
            num_cp=num_cp,
            num_tp=tp,
            hidden_size=model.hidden_size,
            attention_flops=attention,
            gemm_flops=gemm,
            scale_up=float(links.rate(tp)),
            ring_bandwidth=ring_rate,
            kv_bytes_per_token_layer=moved if not a.latent_rank or name == "pass-latent" else moved / tp,
        )
        redo = shape.num_layers * tokens * again / tp / gemm
        total = run.total_s + redo
        binds = "ring" if run.exposed_ring_s > 0.1 * total else bound
        runs.append(
            LongPrefill(
                how=f"{name}, CP{num_cp} x TP{tp}",
                seconds=total,
                packages=num_cp * tp,
                flops_share=shape.work(tokens).flops / num_cp / tp / total / gemm_peak,
                bound=binds,
            )
        )
    return min(runs, key=lambda r: r.seconds)


def chunk_pipeline(
    model: ModelShape, device: HardwareSpec, packages: int, tokens: int, weights: str
) -> LongPrefill:
    """A prompt in chunks through pipeline stages of single packages: what accelerators without a fast link can do.

    Raises RequestError where the weights do not fit the packages, naming the least count that does.
    """
    _must_hold(model, device, packages, weights)
    kernels, shape = Kernels(device), attention_shape(model)
    stages = min(packages, model.num_layers)
    lines = packages // stages  # pipelines side by side work on different prompts
    chunks = max(1, math.ceil(tokens / CHUNK))
    peak = device.peak("fp4" if "fp4" in device.peaks else "bf16")
    work = shape.work(tokens)
    busy = work.gemm_flops / (peak * kernels.shares.gemm_compute) + work.attention_flops / (
        peak * kernels.shares.prefill_compute
    )
    compute = busy / stages / (1 - pipeline_bubble(stages, chunks))
    link = device.link("host") if device.has_link("host") else device.link("scale_out")
    hop = CHUNK * model.hidden_size * 2.0 / (link.bytes_per_s * Links(device).attained(link))
    per_chunk = busy / stages / chunks
    slow = max(1.0, hop / per_chunk)
    return LongPrefill(
        how=f"chunks of {CHUNK:,} through PP{stages}, {lines} prompt{'s' if lines > 1 else ''} at once",
        seconds=compute * slow + (stages - 1) * link.latency_s,
        packages=stages * lines,
        flops_share=work.flops / stages / (compute * slow) / peak,
        bound="hop between stages" if slow > 1 else "arithmetic and bubble",
    )


def _must_hold(model: ModelShape, device: HardwareSpec, packages: int, weights: str) -> None:
    total = weight_bytes(model, weights)
    least = math.ceil(total / (0.9 * device.memory_bytes))
    if packages < least:
        raise RequestError(
            f"packages: {model.name} in {weights} is {total / 1e9:.0f} GB; {packages} x {device.name} of "
            f"{device.memory_bytes / 1e9:.3g} GB do not hold it; nearest feasible is {least}",
            param="packages",
        )


def supernode_question(
    model: ModelShape,
    racks: Sequence[RackSpec],
    *,
    context: int = 8192,
    long_tokens: int = 1_000_000,
    tpot_s: float = 0.05,
) -> Answer:
    """Each rack against the same packages on boards of eight."""
    rows, prefill, sums, notes = [], [], [], []
    used = [load_hardware(name) for name in dict.fromkeys(name for rack in racks for name in rack.parts)]
    for rack in racks:
        sums += rack_sums(rack)
        device = load_hardware(rack.domain) if rack.domain else load_hardware(next(iter(rack.parts)))
        packages = rack.parts[device.name]
        for system in (device, on_boards(device)):
            row, said = _serving_row(model, rack, system, packages, context, tpot_s)
            rows.append(row)
            notes += said
            try:
                prefill.append(_prefill_row(model, rack.name, system, packages, long_tokens))
            except RequestError as error:
                notes.append(f"{rack.name}, prefill on {system.name}: {error.message}")
        for name, count in rack.parts.items():
            if name != device.name and "cpx" in name:
                run = chunk_pipeline(model, load_hardware(name), count, long_tokens, "nvfp4")
                prefill.append(
                    {
                        "rack": rack.name,
                        "system": name,
                        **msgspec.to_builtins(run),
                        "kv": _kv(model, long_tokens),
                    }
                )
    return Answer(
        verb="supernode",
        title=f"{model.name} on rack-scale domains",
        verdict=_verdict(rows, prefill, long_tokens),
        tables=(_serving_table(rows, context), _prefill_table(prefill, long_tokens), _sums_table(sums)),
        charts=_charts(rows, prefill, long_tokens),
        assumed=(
            Assumed(
                "boards",
                f"{BOARD} packages on the domain's link, NICs between",
                "what the rack is compared with",
            ),
            Assumed("tpot", f"{tpot_s * 1e3:g} ms", "of the decode columns"),
            Assumed(
                "attention in prefill",
                "BF16, or the card's widest dtype below",
                "no other precision is published",
            ),
            Assumed(
                "fp4 attention on CPX",
                "at its dense FP4 peak",
                "its precision and exponent rate are not public",
            ),
            *MODELLED.assumed(used),
            *(Assumed(a.name, a.value, a.why) for device in used for a in Links(device).assumptions()),
            *(Assumed(a.name, a.value, a.why) for a in (afd.imbalance_assumed(None),)),
            *device_assumptions([load_hardware(name) for rack in racks for name in rack.parts]),
            *model_assumptions([model]),
        ),
        notes=tuple(dict.fromkeys(notes)),
        formulas=(
            "prefill.work",
            "prefill.ring",
            "prefill.pipeline",
            "prefill.exponent",
            "ep.exchange",
            "afd.period",
        ),
        facts={"serving": rows, "prefill": prefill, "sums": sums},
    )


def rack_sums(rack: RackSpec) -> list[dict]:
    """What our figures add up to against what the vendor states; differences above one per cent are flagged."""
    rows = []
    for name, stated in rack.stated.items():
        ours = rack.totals.get(name)
        off = None if ours is None else ours / stated - 1
        flag = "" if off is None or abs(off) <= 0.015 else rack.discrepancies.get(name, "differs")
        rows.append(
            {
                "rack": rack.name,
                "quantity": name,
                "ours": ours,
                "stated": stated,
                "difference": off,
                "flag": flag,
            }
        )
    return rows


def _serving_row(
    model: ModelShape, rack: RackSpec, system: HardwareSpec, packages: int, context: int, tpot_s: float
) -> tuple[dict, list[str]]:
    row: dict = {"rack": rack.name, "system": system.name, "status": rack.status}
    notes = []
    try:
        table = placement_table(model, [system], context, max_packages=packages)
        best = table.fastest(tpot_s, afd.JITTER_S)
        row |= {
            "layout": f"tp{best.tp} dp{best.dp} ep{best.ep} pp{best.pp}",
            "ep_tgs": best.tokens_per_s_per_package,
        }
    except RequestError as error:
        notes.append(f"{system.name}: {error.message}")
    if model.moe is not None:
        try:
            inside = system.has_link("domain")
            gpus = 4 if inside else BOARD
            p = afd.problem(
                model,
                system,
                system,
                context,
                tpot_s=tpot_s,
                one_domain=inside,
                gpus_attention=gpus,
                gpus_ffn=gpus,
            )
            found = max(afd.search(p, max_packages=packages), key=lambda c: c.tgs)
            row |= {"afd_plan": f"{found.name} of {gpus}", "afd_tgs": found.tgs}
        except RequestError as error:
            notes.append(f"AFD on {system.name}: {error.message}")
    return row, notes


def _prefill_row(model: ModelShape, rack: str, system: HardwareSpec, packages: int, tokens: int) -> dict:
    run = long_prefill(model, system, packages, tokens)
    return {"rack": rack, "system": system.name, **msgspec.to_builtins(run), "kv": _kv(model, tokens)}


def _kv(model: ModelShape, tokens: int) -> float:
    return float(kv_cache_bytes(model, tokens, "fp8"))


def _verdict(rows: Sequence[dict], prefill: Sequence[dict], tokens: int) -> str:
    parts = []
    by_rack: dict[str, list[dict]] = {}
    for row in rows:
        by_rack.setdefault(row["rack"], []).append(row)
    for rack, (whole, boards) in by_rack.items():
        if "ep_tgs" in whole and "ep_tgs" in boards:
            gain = whole["ep_tgs"] / boards["ep_tgs"]
            parts.append(f"{rack}: one domain gives {gain:.2f} times the decode of boards")
            if "afd_tgs" in whole:
                better = whole["afd_tgs"] / whole["ep_tgs"]
                parts[-1] += f", AFD inside it {better:.2f} times plain expert parallelism"
    if prefill:
        best = min(prefill, key=lambda r: r["seconds"])
        caveat = (
            ", if its attention runs at the FP4 peak, which nobody has published"
            if "cpx" in best["system"]
            else ""
        )
        parts.append(
            f"{token_words(tokens)} tokens prefill fastest on {best['system']} in {seconds(best['seconds'])}{caveat}"
        )
    return "; ".join(parts) + "." if parts else "No rack here serves this model."


def _serving_table(rows: Sequence[dict], context: int) -> Table:
    return Table(
        title=f"Decode at {token_words(context)}, tokens a second and package",
        columns=(
            Column("rack", "rack"),
            Column("status", "status"),
            Column("system", "packages joined as"),
            Column("layout", "best layout"),
            Column("ep_tgs", "together", "count"),
            Column("afd_plan", "AFD plan"),
            Column("afd_tgs", "AFD", "count"),
        ),
        rows=tuple(rows),
    )


def _prefill_table(rows: Sequence[dict], tokens: int) -> Table:
    return Table(
        title=f"One prompt of {token_words(tokens)} tokens",
        columns=(
            Column("rack", "rack"),
            Column("system", "system"),
            Column("how", "how"),
            Column("packages", "packages", "count"),
            Column("seconds", "takes", "seconds"),
            Column("flops_share", "of GEMM peak", "percent"),
            Column("bound", "bound by"),
            Column("kv", "KV, 8 bit", "bytes"),
        ),
        rows=tuple(rows),
    )


def _sums_table(rows: Sequence[dict]) -> Table:
    units = {"memory": "B", "bandwidth": "B/s", "scale_up": "B/s"}
    shown = tuple(
        row
        | {
            "ours": None
            if row["ours"] is None
            else scaled(row["ours"], units.get(row["quantity"], "FLOP/s")),
            "stated": scaled(row["stated"], units.get(row["quantity"], "FLOP/s")),
        }
        for row in rows
    )
    return Table(
        title="Do the vendor's sums add up?",
        columns=(
            Column("rack", "rack"),
            Column("quantity", "quantity"),
            Column("ours", "parts sum to"),
            Column("stated", "stated"),
            Column("difference", "difference", "percent"),
            Column("flag", "flag"),
        ),
        rows=shown,
    )


def _charts(rows: Sequence[dict], prefill: Sequence[dict], tokens: int) -> tuple[Bars, ...]:
    charts = []
    # One bar a way of serving: (label, together, AFD), one of the two 0.
    served = [
        bar
        for r in rows
        for bar in (
            (f"{r['rack']}, {r['system']}", r.get("ep_tgs", 0.0), 0.0),
            (f"AFD {r.get('afd_plan', '')}", 0.0, r.get("afd_tgs", 0.0)),
        )
        if bar[1] or bar[2]
    ]
    if served:
        labels, together, cut = zip(*served, strict=True)
        charts.append(
            Bars(
                title="Decode, tokens a second and package",
                x_label="tokens/s a package",
                labels=labels,
                parts=(("together", together), ("AFD", cut)),
            )
        )
    if prefill:
        charts.append(
            Bars(
                title=f"Prefill of {token_words(tokens)} tokens",
                x_label="seconds",
                labels=tuple(f"{r['rack']}, {r['system']}" for r in prefill),
                parts=(("prefill", tuple(r["seconds"] for r in prefill)),),
            )
        )
    return tuple(charts)
