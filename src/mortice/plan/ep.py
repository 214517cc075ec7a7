"""`plan ep`: over how many ranks should experts lie, and what does the exchange cost there?"""

from collections.abc import Sequence

from mortice.cost import Links, dtype_bytes
from mortice.plan.answer import Answer, Assumed, Column, Lines, Mark, Series, Table
from mortice.plan.exchange import Tier, dispatch_load, exchange_s, expected_imbalance
from mortice.plan.inputs import device_assumptions, model_assumptions
from mortice.plan.measured import MODELLED, Measured
from mortice.plan.placement import formats_for
from mortice.plan.words import scaled, seconds
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape

SIZES = (1, 2, 4, 8, 16, 32, 36, 48, 64, 72, 96, 128, 144, 192, 256, 288, 320)
MAX_TOKENS = 1 << 20
EXPERT_MEMORY = 0.6  # share of a package that experts may take; attention, KV and buffers need the rest


def domain_size(device: HardwareSpec) -> int:
    """Packages that share the fast network."""
    return max([1, *(link.span for link in device.links if link.tier in ("node", "domain"))])


def tiers(device: HardwareSpec) -> tuple[Tier, Tier | None]:
    """(scale-up, scale-out) at attained rates; a card without a fast link has its only link as the first."""
    links = Links(device)
    by_name = {
        link.tier: Tier(
            bandwidth=link.bytes_per_s * links.attained(link), latency_s=link.latency_s + links.overhead_s
        )
        for link in device.links
    }
    up = by_name.get("domain") or by_name.get("node") or by_name.get("scale_out") or by_name.get("host")
    if up is None:
        raise RequestError(
            f"{device.name}: links are missing; experts on several packages need one", param="links"
        )
    return up, by_name.get("scale_out")


def ep_rows(
    model: ModelShape,
    device: HardwareSpec,
    tokens_per_rank: int,
    *,
    sizes: Sequence[int] = SIZES,
    imbalance: float | None = None,
    weights: str | None = None,
    measured: Measured = MODELLED,
) -> list[dict]:
    """One row a group size that divides the experts and fills whole domains. Raises RequestError for a dense model."""
    experts = model.moe
    if experts is None:
        raise RequestError(
            f"model: {model.name} has no experts, so there is no expert parallelism", param="model"
        )
    if not 1 <= tokens_per_rank <= MAX_TOKENS:
        raise RequestError(
            f"tokens must be at least 1 a rank and at most {MAX_TOKENS:,}, not {tokens_per_rank}",
            param="tokens",
        )
    near = domain_size(device)
    reaches_out = tiers(device)[1] is not None
    fitting = [
        ranks
        for ranks in sizes
        if ranks <= experts.num_experts
        and experts.num_experts % ranks == 0
        and (ranks <= near or (ranks % near == 0 and reaches_out))
    ]
    rows = [
        _row(model, device, tokens_per_rank, ranks, imbalance=imbalance, weights=weights, measured=measured)
        for ranks in fitting
    ]
    if not rows:
        raise RequestError(
            f"model: no group of {', '.join(map(str, sizes))} ranks divides {experts.num_experts} experts on "
            f"domains of {near}",
            param="model",
        )
    return rows


def _row(
    model: ModelShape,
    device: HardwareSpec,
    tokens_per_rank: int,
    ranks: int,
    *,
    imbalance: float | None,
    weights: str | None,
    measured: Measured,
) -> dict:
    """What one layer's experts cost in a group of `ranks`; seconds and bytes a rank."""
    experts = model.moe
    assert experts is not None
    formats, kernels, near = formats_for(device, weights), measured.kernels(device), domain_size(device)
    up, out = tiers(device)
    loads = {
        leg: dispatch_load(
            tokens=tokens_per_rank,
            hidden_size=model.hidden_size,
            element_bytes=dtype_bytes(dtype),
            num_experts=experts.num_experts,
            top_k=experts.top_k,
            num_ranks=ranks,
            ranks_per_domain=near,
        )
        for leg, dtype in (("dispatch", formats.wire_out), ("combine", formats.wire_back))
    }
    uneven = imbalance or float(expected_imbalance(tokens_per_rank * ranks, experts.top_k, ranks))
    expert_s = float(
        kernels.experts(
            tokens_per_rank * ranks, model.hidden_size, experts.expert_size, experts.num_experts, experts.top_k,
            ranks, formats.expert_weights, uneven, experts.matrices,
        )
    )  # fmt: skip
    weight_bytes = (
        experts.matrices * model.hidden_size * experts.expert_size * experts.num_experts / ranks
        * model.moe_layers * dtype_bytes(formats.expert_weights)
    )  # fmt: skip
    dispatch_s = exchange_s(loads["dispatch"], up, out) if ranks > 1 else 0.0
    combine_s = exchange_s(loads["combine"], up, out) if ranks > 1 else 0.0
    load = loads["dispatch"]
    return {
        "ep": ranks,
        "domains": max(1, ranks // near),
        "experts_per_rank": experts.num_experts // ranks,
        "ranks_visited": load.ranks_visited,
        "domains_visited": load.domains_visited,
        "scale_out_bytes": load.scale_out_bytes,
        "naive_scale_out_bytes": load.naive_scale_out_bytes,
        "scale_up_bytes": load.scale_up_bytes,
        "dispatch_s": dispatch_s,
        "combine_s": combine_s,
        "imbalance": uneven,
        "experts_s": expert_s,
        "layer_s": dispatch_s + combine_s + expert_s,
        "weight_bytes": weight_bytes,
        "fits": weight_bytes <= EXPERT_MEMORY * device.memory_bytes,
    }


def ep_question(
    model: ModelShape,
    device: HardwareSpec,
    tokens_per_rank: int = 128,
    *,
    imbalance: float | None = None,
    weights: str | None = None,
    measured: Measured = MODELLED,
) -> Answer:
    rows = ep_rows(model, device, tokens_per_rank, imbalance=imbalance, weights=weights, measured=measured)
    fitting = [row for row in rows if row["fits"]]
    best = min(fitting, key=lambda r: r["layer_s"]) if fitting else None
    near = domain_size(device)
    formats = formats_for(device, weights)
    table = Table(
        title=f"One expert layer at {tokens_per_rank} tokens a rank",
        columns=(
            Column("ep", "ranks", "count"),
            Column("experts_per_rank", "experts each", "count"),
            Column("ranks_visited", "ranks a token", "number"),
            Column("scale_up_bytes", "inside", "bytes"),
            Column("scale_out_bytes", "across", "bytes"),
            Column("naive_scale_out_bytes", "across, a copy an expert", "bytes"),
            Column("dispatch_s", "dispatch", "seconds"),
            Column("combine_s", "combine", "seconds"),
            Column("imbalance", "imbalance", "number"),
            Column("experts_s", "experts", "seconds"),
            Column("layer_s", "layer", "seconds"),
            Column("weight_bytes", "weights", "bytes"),
            Column("fits", "fits", "yes"),
        ),
        rows=tuple(rows),
        best=rows.index(best) if best else None,
    )
    xs = tuple(float(r["ep"]) for r in rows)
    chart = Lines(
        title=f"Where an expert layer's time goes on {device.name}",
        x_label="ranks",
        y_label="us",
        series=tuple(
            Series(name, xs, tuple(1e6 * r[key] for r in rows))
            for name, key in (
                ("dispatch", "dispatch_s"),
                ("combine", "combine_s"),
                ("experts", "experts_s"),
                ("layer", "layer_s"),
            )
        ),
        marks=(Mark(f"domain of {near}", x=float(near)),) if near > 1 else (),
        log_x=True,
    )
    return Answer(
        verb="ep",
        title=f"{model.name}: experts over the ranks of {device.name}",
        verdict=_verdict(best, rows, device),
        tables=(table,),
        charts=(chart,),
        assumed=(
            Assumed(
                "wire", f"{formats.wire_out} out, {formats.wire_back} back", "8 bit out where the card has it"
            ),
            Assumed(
                "imbalance",
                f"{imbalance:g}" if imbalance else "of uniform random routing",
                "given" if imbalance else "a real router is worse: measure it and give --imbalance",
            ),
            Assumed(
                "room for experts", f"{EXPERT_MEMORY:.0%} of memory", "the rest is attention, KV and buffers"
            ),
            *measured.assumed([device]),
            *(Assumed(a.name, a.value, a.why) for a in Links(device).assumptions()),
            *device_assumptions([device], prices=False),
            *model_assumptions([model]),
        ),
        notes=_fragments(rows, near),
        formulas=("ep.visits", "ep.exchange"),
        facts={"rows": rows, "best": best},
    )


def _fragments(rows: list[dict], near: int) -> tuple[str, ...]:
    """A domain that no group fills leaves packages over."""
    inside = max((r["ep"] for r in rows if r["domains"] == 1), default=near)
    left = near - inside * (near // inside)
    if near <= 8 or left == 0:
        return ()
    return (
        f"groups of {inside} leave {left} of the {near} packages of a domain over: the experts do not divide by {near}",
    )


def _verdict(best: dict | None, rows: list[dict], device: HardwareSpec) -> str:
    if best is None:
        least = rows[-1]
        return (
            f"Experts do not fit: even over {least['ep']} ranks they take {scaled(least['weight_bytes'], 'B')} of "
            f"{scaled(device.memory_bytes, 'B')} a package."
        )
    text = f"{best['ep']} ranks are fastest: {seconds(best['layer_s'])} a layer"
    share = (best["dispatch_s"] + best["combine_s"]) / best["layer_s"]
    text += f", {share:.0%} of it exchange."
    wide = [r for r in rows if r["domains"] > 1]
    if wide:
        saved = 1 - wide[0]["scale_out_bytes"] / wide[0]["naive_scale_out_bytes"]
        text += f" Across {wide[0]['domains']} domains one copy a domain saves {saved:.0%} of the bytes."
    return text
