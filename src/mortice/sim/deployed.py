"""A deployment document as a simulation: its workers' times from the cost model (or as measured), its links, its limits."""

import msgspec

from mortice.cost.layout import Formats, Layout
from mortice.cost.links import Links
from mortice.cost.worker_times import worker_times
from mortice.sched.prefill_order import order_of
from mortice.sched.prefix_fetch import PrefixFetch
from mortice.sched.setup import setup_of
from mortice.sim.plan import Body, Physics, Plan
from mortice.specs.catalogue import load_hardware, load_model
from mortice.specs.cluster import ClusterSpec, PolicyName
from mortice.specs.deployment import Deployment
from mortice.specs.errors import RequestError
from mortice.specs.worker_times import WorkerTimes


def plan_of(deployment: Deployment, policy: PolicyName | None = None) -> Plan:
    """What `deployment` describes. `policy` overrides the document's.

    Raises RequestError naming the field: no cluster section, unknown hardware or model, a layout that does not fit.
    """
    spec = deployment.cluster
    if spec is None:
        raise RequestError(
            "cluster: the document does not say what its workers stand on; add cluster.hardware and cluster.slo "
            "(mortice plan place writes them)",
            param="cluster",
        )
    spec.check_modelled()
    prefill = _times(deployment, spec, spec.prefill_tp, spec.prefill_pp, spec.prefill_times, "prefill")
    decode = _times(deployment, spec, spec.decode_tp, spec.decode_pp, spec.decode_times, "decode")
    limits, roles = deployment.limits, deployment.roles
    setup = setup_of(deployment, prefill_times=prefill, decode_times=decode, policy=policy)
    body = Body(
        times=prefill,
        token_budget=limits.token_budget,
        max_num_seqs=limits.max_num_seqs,
        bytes_per_s=_port(spec) * prefill.gpus,
        order=order_of(limits),
    )
    if spec.fetch_prefixes:
        port = body.bytes_per_s
        token_s = prefill.kv_token_bytes / port if port else 0.0
        fetch = PrefixFetch(base_s=Physics().transfer_base_s, token_s=token_s)
        setup = msgspec.structs.replace(setup, fetch=fetch)
    return Plan(
        setup=setup,
        prefill=roles["prefill"],
        decode=roles["decode"],
        mixed=roles["mixed"],
        prefill_body=body,
        decode_body=msgspec.structs.replace(body, times=decode, bytes_per_s=_port(spec) * decode.gpus),
        physics=Physics(
            start_s=spec.start_s,
            flip_s=spec.flip_s,
            lease_s=deployment.transfer.lease_s,
            lends=deployment.transfer.mode == "map" and _shares_memory(deployment, spec),
            spread=spec.step_spread,
            prompt_spread=spec.prompt_spread,
        ),
        convertible=spec.convertible,
    )


def longest(plan: Plan, deployment: Deployment) -> int:
    """Tokens of the longest request that every worker holds."""
    rooms = [plan.decode_body.times.kv_tokens]
    if plan.prefill:
        rooms.append(plan.prefill_body.times.kv_tokens)
    if deployment.limits.max_context is not None:
        rooms.append(deployment.limits.max_context)
    return min(rooms) // plan.setup.block_size * plan.setup.block_size


def _times(
    deployment: Deployment, spec: ClusterSpec, tp: int, pp: int, given: WorkerTimes | None, phase: str
) -> WorkerTimes:
    if given is not None:
        return given
    assert spec.hardware is not None
    hardware = load_hardware(spec.hardware)
    model = load_model(spec.shape or deployment.model)
    formats = Formats(weights=spec.weights, kv=spec.kv)
    for name, dtype in (("weights", spec.weights), ("kv", spec.kv)):
        if name == "weights" and dtype not in hardware.peaks:
            raise RequestError(
                f"cluster.weights: {hardware.name} has no {dtype} arithmetic; it has {', '.join(hardware.peaks)}",
                param="cluster.weights",
            )
    try:
        return worker_times(model, hardware, Layout(tp=tp, pp=pp), formats)
    except RequestError as error:
        raise RequestError(f"cluster.{phase}_tp: {error.message}", param=f"cluster.{phase}_tp") from error


def _shares_memory(deployment: Deployment, spec: ClusterSpec) -> bool:
    """Workers of one host: their times were measured, and nothing is said of a port or of hardware."""
    is_local = spec.hardware is None and spec.port_bytes_per_s is None
    return is_local and deployment.transfer.transport in ("auto", "shm")


def _port(spec: ClusterSpec) -> float:
    """Bytes a second of one device's port: what was given, or the link that leaves the node, at its attained share."""
    if spec.port_bytes_per_s is not None:
        return spec.port_bytes_per_s
    if spec.hardware is None:
        return 0.0
    hardware = load_hardware(spec.hardware)
    for tier in ("scale_out", "domain", "node", "host"):
        for link in hardware.links:
            if link.tier == tier:
                return link.bytes_per_s * Links(hardware).attained(link)
    return hardware.memory_bytes_per_s / 2  # one shared memory: a copy at its bandwidth
