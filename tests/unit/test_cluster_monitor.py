"""Step times: what a worker measures of itself, what is fitted to it, and what the resource monitor makes of its words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mortice.cluster.decisions import Decisions
from mortice.cluster.launcher import LocalLauncher
from mortice.cluster.membership import Membership
from mortice.cluster.resource_monitor import ResourceMonitor, expected_seconds
from mortice.cost.step_fit import fit_steps, ledger_rows
from mortice.engine.ledger import Ledger, StepWork
from mortice.engine.measure import measure
from mortice.sched import events
from mortice.sched.journal import replay
from mortice.sched.plane import Setup
from mortice.specs.errors import RequestError, WrongState
from mortice.specs.kv import KVLayout, PoolAddress
from mortice.specs.messages import Hello, KVEvents, Submit, WorkerStats
from mortice.specs.worker_times import WorkerTimes
from mortice.testing import FakeClock

TIMES = WorkerTimes(
    prefill_base_s=0.01,
    prefill_token_s=1e-3,
    prefill_square_s=1e-7,
    decode_base_s=0.02,
    decode_sequence_s=1e-3,
    decode_context_s=1e-6,
    kv_tokens=1000,
)
PROMPTS = [(t, t * t, 0, 0) for t in (16, 64, 256, 512)]
DECODES = [(0, 0, b, b * c) for b in (1, 4, 16) for c in (32, 256)]


def row(tokens: int, squares: int, batch: int, context: int) -> tuple[float, ...]:
    return (TIMES.mixed_s(tokens, squares, batch, context), tokens, squares, batch, context)


def test_times_that_made_the_steps_are_found_again() -> None:
    rows = [row(*work) for work in (*PROMPTS, *DECODES)] + [row(64, 64 * 64, 4, 400)]
    found = fit_steps(rows, kv_tokens=1000, kv_token_bytes=8.0, source="test")
    for name in (
        "prefill_base_s",
        "prefill_token_s",
        "decode_base_s",
        "decode_sequence_s",
        "decode_context_s",
    ):
        assert getattr(found, name) == pytest.approx(getattr(TIMES, name), rel=1e-6)
    with pytest.raises(RequestError, match="only decoded"):
        fit_steps(rows[:4], kv_tokens=1, kv_token_bytes=1.0, source="test")


def test_sums_of_steps_price_like_the_steps_themselves(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"), "w", 1, 1, 1)
    works = [StepWork(*work) for work in (*PROMPTS, *DECODES)] + [StepWork(64, 64 * 64, 4, 400)]
    for work in works:
        ledger.step_s = {"forward": 0.5}
        ledger.end_step(num_seqs=1, num_tokens=1, context_tokens=1, num_outputs=1, work=work)
    ledger.close()
    one_by_one = sum(
        TIMES.mixed_s(w.prompt_tokens, w.prompt_squares, w.sequences, w.context_tokens) for w in works
    )
    assert expected_seconds(TIMES, ledger.sums) == pytest.approx(one_by_one)
    assert ledger.sums["step_seconds"] == pytest.approx(0.5 * len(works))
    assert list(ledger_rows(tmp_path / "ledger.w")[0])[1:] == [16.0, 256.0, 0.0, 0.0]
    broken = tmp_path / "broken"
    broken.write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(RequestError, match="line 1"):
        ledger_rows(broken)


def test_an_engine_measures_itself_and_is_left_as_it_was(make_rig: Callable[..., Any]) -> None:
    rig = make_rig(num_blocks=128)
    rows = measure(rig.engine)
    times = fit_steps(rows, kv_tokens=512, kv_token_bytes=1.0, source="test")
    assert times.prefill_s(64) > 0
    assert {r[3] for r in rows} >= {0, 1, 2, 4, 8}
    rig.engine.check_integrity()
    assert rig.engine.pool.num_free == 128
    assert not rig.engine.has_work
    assert not any(rig.engine.counters.values())


def test_an_engine_with_work_is_not_measured(make_rig: Callable[..., Any], make_request: Any) -> None:
    rig = make_rig()
    rig.submit(Submit(request=make_request("r", [1, 2, 3])))
    with pytest.raises(WrongState):
        measure(rig.engine)


def hello_of(worker_id: str) -> Hello:
    return Hello(
        worker_id=worker_id,
        pid=1,
        layout=KVLayout(num_layers=1, planes=((1, 1),), block_size=4, dtype="float32", model="m"),
        pool=PoolAddress(pool_id="p", num_blocks=9, block_bytes=4, layout_digest=""),
        max_context=9,
        vocab_size=9,
        eos_token_ids=[],
        weight_version=0,
        startup_s={},
    )


def test_a_slow_worker_is_seen_and_a_cold_one_is_not_taken_for_slow(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    decisions = Decisions(
        Setup(block_size=4, prefill_times=TIMES, decode_times=TIMES), journal=log, clock=FakeClock()
    )
    members = Membership(10.0)
    member = members.add("decode", LocalLauncher())
    members.begin_life(member)
    member.hello = hello_of(member.worker_id)
    decisions.hear(events.Joined(0.0, member.worker_id, "decode", 9))
    monitor = ResourceMonitor(decisions)
    steps = 0

    def say(num_steps: int, step_s: float) -> float:
        nonlocal steps, spent
        steps += num_steps
        spent += num_steps * step_s
        counters = {"steps_decode": steps, "step_sequences": steps, "step_context_tokens": 100 * steps}
        stats = WorkerStats(
            worker_id=member.worker_id,
            state="running",
            num_free_blocks=7,
            counters=counters | {"step_seconds": spent},
        )
        monitor.hear(member, stats)
        return decisions.plane.fleet.workers[member.worker_id].slowdown

    spent = 0.0
    expected = TIMES.decode_s(1, 100)
    assert say(1, 5.0) == 1.0  # its first steps, compilation and all
    assert say(6, 5.0) == 1.0
    for _ in range(40):
        slow = say(20, 3 * expected)
    assert slow == pytest.approx(3.0, rel=0.02)
    monitor.hear(member, KVEvents(worker_id=member.worker_id, sequence=1, stored=[b"a"]))
    assert decisions.plane.prefixes.holders([b"a"], 4) == [member.worker_id]
    monitor.forget(member.worker_id)
    decisions.close()
    again = replay(log)
    assert again.num_events == 44
    assert not again.differences


def test_silence_fences_and_words_of_a_fenced_life_are_not_heard() -> None:
    clock = FakeClock()
    members = Membership(5.0, clock)
    member = members.add("decode", LocalLauncher())
    members.begin_life(member)
    assert not members.silent()  # not ready yet
    member.hello = hello_of(member.worker_id)
    clock.advance(4.0)
    members.hear(member)
    clock.advance(4.0)
    assert not members.silent()
    clock.advance(2.0)
    assert members.silent() == [member]
    member.is_fenced = True
    assert members.living(member.worker_id) is None
    first = member.worker_id
    members.begin_life(member)
    assert members.living(first) is None
    assert members.living(member.worker_id) is member
    assert members.find(member.place) is member
    assert members.find(first) is None
