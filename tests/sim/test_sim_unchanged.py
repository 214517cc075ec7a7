"""What a seed gives is what it gave before: a change of how the simulator keeps its books must not change an instant.

Arrivals are integers of a linear congruential generator, so that the digests hold on every machine. A change of the model
changes them on purpose: then say in the commit what moved and why, and enter the new ones.
"""

import hashlib
import struct
from collections.abc import Iterator

import msgspec
import pytest

from mortice.sim.cluster import Cluster
from mortice.sim.faults import Fault
from mortice.sim.plan import Physics, Plan
from mortice.sim.request import SimRequest
from mortice.sim.scenario import pools
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes

TIMES = WorkerTimes(
    prefill_base_s=0.006, prefill_token_s=2e-5, prefill_square_s=2e-10, decode_base_s=0.0048,
    decode_sequence_s=2e-5, decode_context_s=2.5e-8, kv_tokens=200_000, kv_token_bytes=131_072,
)  # fmt: skip
SMALL = msgspec.structs.replace(TIMES, kv_tokens=12_000)
SLOS = SLO(ttft_ms=500, tpot_ms=25)
FAULTS = (
    Fault(at_s=1.0, kind="kill", worker=1),
    Fault(at_s=2.0, kind="slow", worker=2, lasts_s=3.0, factor=3.0),
    Fault(at_s=2.5, kind="cut", worker=0, lasts_s=9.0),
)


def draws() -> Iterator[int]:
    state = 12345
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        yield state >> 33


def made(count: int, rate: float, *, groups: int = 0, patience: bool = False) -> list[SimRequest]:
    """`groups`: so many shared beginnings of 512 tokens; `patience`: one in eight hangs up within two seconds."""
    draw, at_s, requests = draws(), 0.0, []
    for i in range(count):
        at_s += next(draw) % 2048 / (1024 * rate)
        prompt_len, output_len = 16 + next(draw) % 1500, 1 + next(draw) % 200
        names: list[bytes] = []
        if groups:
            group = next(draw) % groups
            shared = [(group << 8 | b).to_bytes(8, "big") for b in range(32)]
            own = [(1 << 40 | i << 8 | b).to_bytes(8, "big") for b in range(prompt_len // 16)]
            names = (shared + own)[: prompt_len // 16]
        request = SimRequest(i, at_s, prompt_len, output_len, names)
        if patience and next(draw) % 8 == 0:
            request.leaves_s = at_s + next(draw) % 2048 / 1024
        requests.append(request)
    return requests


PLANS: dict[str, tuple[Plan, list[SimRequest], tuple[Fault, ...]]] = {
    "divided": (pools(TIMES, 3, 3, slo=SLOS), made(1500, 60), ()),
    "undivided": (pools(TIMES, 0, 0, 4, slo=SLOS), made(800, 40), ()),
    "short memory, slow links": (
        pools(TIMES, 1, 2, slo=SLOS, decode_times=SMALL, bytes_per_s=2e9), made(600, 25, patience=True), (),
    ),
    "shared prefixes": (pools(TIMES, 2, 2, slo=SLOS), made(800, 50, groups=6), ()),
    "lent": (pools(TIMES, 2, 2, slo=SLOS, decode_times=SMALL, physics=Physics(lends=True)), made(600, 30), ()),
    "pipeline": (pools(msgspec.structs.replace(TIMES, pp=2), 2, 2, slo=SLOS, decode_times=TIMES), made(600, 40), ()),
    "faults": (
        pools(TIMES, 2, 3, slo=SLOS, physics=Physics(start_s=1.0, lease_s=2.0)), made(800, 50, patience=True), FAULTS,
    ),
}  # fmt: skip

DIGESTS = {
    "divided": "3b31d171ff24faa6",
    "undivided": "789a6b66e1907cab",
    "short memory, slow links": "f85443152432bc83",
    "shared prefixes": "9138b1970f49e7d7",
    "lent": "698ee93049fc401e",
    "pipeline": "830ddcf1a28defff",
    "faults": "52695ba6bab49f78",
}


@pytest.mark.parametrize("name", PLANS)
def test_every_instant_is_what_it_was(name: str) -> None:
    plan, requests, faults = PLANS[name]
    cluster = Cluster(plan, requests, faults=faults)
    cluster.run()
    cluster.check()
    digest = hashlib.sha256()
    for r in requests:
        digest.update(
            struct.pack(
                "<4d4q", r.first_s, r.moved_s, r.accepted_s, r.end_s, r.given, r.hit, r.attempts, len(r.stage)
            )
        )
    for worker in cluster.workers.values():
        digest.update(
            struct.pack(
                "<d3q", worker.busy_s, worker.steps, worker.num_prefill_tokens, worker.num_preemptions
            )
        )
    assert digest.hexdigest()[:16] == DIGESTS[name]
