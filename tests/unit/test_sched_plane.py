"""The control plane as a driver meets it: books balance, roles change, logs replay."""

from pathlib import Path

import msgspec
import pytest

from mortice.sched.actions import Bounds, Flip, Start, Stop
from mortice.sched.admission import Admit
from mortice.sched.controller import Decision, Pace
from mortice.sched.events import (
    Arrived,
    Cached,
    Ended,
    Event,
    Joined,
    Left,
    Lost,
    Prefilled,
    Reported,
    Tick,
    Worn,
)
from mortice.sched.journal import Journal, replay
from mortice.sched.plane import ControlPlane, DecodeAt, Held, Refused, Routed, Setup
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes

TIMES = WorkerTimes(
    prefill_base_s=0.005,
    prefill_token_s=0.0001,
    decode_base_s=0.01,
    decode_sequence_s=0.0001,
    decode_context_s=1e-7,
    kv_tokens=100_000,
    kv_token_bytes=131_072,
)
SLOS = SLO(ttft_ms=500, tpot_ms=50)


def setup(**changes: object) -> Setup:
    base = Setup(prefill_times=TIMES, decode_times=TIMES, slo=SLOS, local_prefill_tokens=64)
    return msgspec.structs.replace(base, **changes)


def fleet(plane: ControlPlane, prefill: int, decode: int, mixed: int = 0) -> None:
    for role, count in (("prefill", prefill), ("decode", decode), ("mixed", mixed)):
        for i in range(count):
            plane.hear(Joined(0.0, f"{role}-{i}", role, 6250))


def arrive(plane: ControlPlane, name: str, prompt_len: int = 1000, at_s: float = 0.0) -> Routed:
    answer = plane.hear(Arrived(at_s, name, prompt_len))
    assert isinstance(answer, Routed)
    return answer


def run(
    plane: ControlPlane, count: int, *, start_s: float = 0.0, prompt_len: int = 1000, gap_s: float = 0.1
) -> None:
    """Requests one after the other, each over before the next."""
    for i in range(count):
        name, at_s = f"r{start_s}-{i}", start_s + i * gap_s
        plane.hear(Arrived(at_s, name, prompt_len))
        plane.hear(Prefilled(at_s + 0.1, name))
        plane.hear(Ended(at_s + 0.2, name, 100, 0.1, 0.02))


def test_prompts_spread_over_prefill_workers_and_go_on_where_decode_is_lightest() -> None:
    plane = ControlPlane(setup())
    fleet(plane, 2, 2)
    routes = [arrive(plane, f"r{i}").route for i in range(4)]
    assert [r.prefill for r in routes] == ["prefill-0", "prefill-1", "prefill-0", "prefill-1"]
    where = [plane.hear(Prefilled(1.0, f"r{i}")) for i in range(4)]
    assert where == [DecodeAt("decode-0"), DecodeAt("decode-1"), DecodeAt("decode-0"), DecodeAt("decode-1")]


def test_books_are_empty_when_all_is_over() -> None:
    plane = ControlPlane(setup())
    fleet(plane, 2, 2, 1)
    for i in range(20):
        arrive(plane, f"r{i}", 40 if i % 3 else 3000)
    for i in range(20):
        if i % 4 == 0:
            plane.hear(Lost(1.0, f"r{i}"))
        else:
            plane.hear(Prefilled(1.0, f"r{i}"))
    for i in range(20):
        plane.hear(Ended(2.0, f"r{i}", 10, 0.2, 0.03))
    assert len(plane) == 0
    for worker in plane.fleet.workers.values():
        assert (worker.num_prefilling, worker.num_decoding, worker.prefill_work, worker.context_tokens) == (
            0,
            0,
            0,
            0,
        )


def test_a_short_prompt_is_prefilled_where_it_decodes() -> None:
    plane = ControlPlane(setup())
    fleet(plane, 1, 1)
    route = arrive(plane, "short", 64).route
    assert (route.prefill, route.decode, route.other) == (None, "decode-0", "prefill-0")
    assert plane.hear(Prefilled(0.1, "short")) == DecodeAt("decode-0")


def test_a_cached_prefix_draws_a_prompt_until_the_queue_costs_more() -> None:
    plane = ControlPlane(setup())
    fleet(plane, 4, 1)
    names = [bytes([i]) * 8 for i in range(62)]
    plane.hear(Cached("prefill-3", names, []))
    places = []
    for i in range(80):
        answer = plane.hear(Arrived(0.0, f"r{i}", 1000, names))
        assert isinstance(answer, Routed)
        places.append(answer.route.prefill)
    assert places[0] == places[1] == "prefill-3"
    assert set(places) == {f"prefill-{i}" for i in range(4)}  # one hot prefix does not starve the others


def test_without_a_decode_worker_requests_are_held_and_without_prefill_they_are_colocated() -> None:
    plane = ControlPlane(setup())
    plane.hear(Joined(0.0, "prefill-0", "prefill", 6250))
    assert plane.hear(Arrived(0.0, "r", 1000)) == Held()
    plane.hear(Left(0.5, "prefill-0"))
    plane.hear(Joined(1.0, "decode-0", "decode", 6250))
    assert arrive(plane, "r").route.prefill is None


def test_a_convertible_decode_worker_prefills_only_while_the_prefill_pool_is_late() -> None:
    plane = ControlPlane(setup())
    plane.hear(Joined(0.0, "prefill-0", "prefill", 6250))
    plane.hear(Joined(0.0, "decode-0", "decode", 6250, convertible=True))
    routes = [arrive(plane, f"r{i}", 2000).route for i in range(4)]
    assert [r.prefill for r in routes] == ["prefill-0", "prefill-0", None, None]  # 0.2 s each, 0.5 s allowed
    assert "convertible" in routes[2].reason
    assert routes[2].other == "prefill-0"


def test_under_our_policy_every_decode_worker_bends_whatever_it_was_before() -> None:
    plane = ControlPlane(setup(policy="mortice"))
    fleet(plane, 2, 0)
    plane.hear(Worn(0.0, "prefill-1", "decode"))
    routes = [arrive(plane, f"r{i}", 2000).route for i in range(4)]
    assert [r.prefill for r in routes] == ["prefill-0", "prefill-0", None, None]


def test_a_request_that_would_be_late_is_refused_and_counts_as_missed() -> None:
    plane = ControlPlane(setup(admit=Admit(late=1.0)))
    fleet(plane, 1, 1)
    for i in range(2):
        arrive(plane, f"r{i}", 2000)
    answer = plane.hear(Arrived(0.0, "late", 2000))
    assert isinstance(answer, Refused)
    assert "0.6" in answer.reason
    decision = plane.hear(Tick(10.0))
    assert isinstance(decision, Decision)
    assert (decision.seen.num_ended, decision.seen.num_met) == (1, 0)


def test_roles_follow_the_length_shift_and_back_without_touching_a_busy_worker_first() -> None:
    """Equal request rate, prompts from 200 to 8,000 tokens: the ratio must follow although the count is flat."""
    plane = ControlPlane(setup(policy="mortice", pace=Pace(dwell_s=0.0), slo=SLO(ttft_ms=2000, tpot_ms=14)))
    fleet(plane, 4, 4)
    flips: list[Flip] = []
    at_s = 0.0
    counts = []
    for prompt_len in (200, 8000, 200):
        for _ in range(8):
            run(plane, 100, start_s=at_s, prompt_len=prompt_len)
            at_s += 10.0
            decision = plane.hear(Tick(at_s))
            assert isinstance(decision, Decision)
            flips += [a for a in decision.actions if isinstance(a, Flip)]
        counts.append([plane.fleet.num(role) for role in ("prefill", "decode", "mixed")])
    assert counts[0] != counts[1]
    assert counts[1][0] > max(counts[0][0], counts[2][0])
    assert sum(counts[1]) == 8
    assert len(flips) <= 24


def test_bad_figures_change_nothing() -> None:
    """A scrape that fails must not scale a service down (the released planner resets both pools to 1)."""
    plane = ControlPlane(setup(policy="dopd", bounds=Bounds(max_gpus=16), pace=Pace(patience=1)))
    fleet(plane, 4, 4)
    run(plane, 50)
    plane.hear(Reported(5.0, "decode-0", 3, -1, 1.0))
    plane.hear(Reported(5.0, "decode-1", 3, 10, float("nan")))
    decision = plane.hear(Tick(10.0))
    assert isinstance(decision, Decision)
    assert decision.actions == []
    assert "not trusted" in decision.reason


def test_stale_reports_change_nothing() -> None:
    plane = ControlPlane(setup(policy="mortice", bounds=Bounds(max_gpus=16), pace=Pace(patience=1)))
    fleet(plane, 4, 4)
    plane.hear(Reported(0.0, "decode-0", 0, 10, 1.0))
    run(plane, 50)
    decision = plane.hear(Tick(100.0))
    assert isinstance(decision, Decision)
    assert decision.actions == []
    assert "100 s old" in decision.reason


def test_scaling_grows_at_once_and_shrinks_only_after_patience() -> None:
    plane = ControlPlane(
        setup(policy="mortice", bounds=Bounds(max_gpus=16, max_flips=0), pace=Pace(patience=3))
    )
    fleet(plane, 1, 1)
    orders: list[int] = []
    at_s = 0.0
    for requests in (400, 400, 400, 2, 2, 2, 2, 2):
        run(plane, requests, start_s=at_s, prompt_len=3000, gap_s=10.0 / requests)
        at_s += 10.0
        decision = plane.hear(Tick(at_s))
        assert isinstance(decision, Decision)
        starts = [a for a in decision.actions if isinstance(a, Start)]
        stops = [a for a in decision.actions if isinstance(a, Stop)]
        for i, start in enumerate(starts):
            plane.hear(Joined(at_s, f"new-{at_s:.0f}-{i}", start.role, 6250))
        for stop in stops:
            plane.hear(Left(at_s, stop.worker_id))
        orders.append(len(starts) - len(stops))
        assert len(plane.fleet.workers) <= 16
    assert orders[0] > 0
    assert min(orders[:5]) >= 0  # two small intervals are not enough
    assert min(orders) < 0


def test_an_operator_may_change_roles_and_the_plane_goes_by_what_is() -> None:
    plane = ControlPlane(setup())
    fleet(plane, 1, 2)
    plane.hear(Worn(0.0, "decode-0", "prefill"))
    assert {arrive(plane, f"r{i}").route.prefill for i in range(2)} == {"prefill-0", "decode-0"}


def test_a_log_replays_to_the_same_answers_and_a_changed_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    config = setup(policy="mortice", pace=Pace(dwell_s=0.0))
    with Journal(path, config) as journal:
        plane = ControlPlane(config, journal.write)
        fleet(plane, 3, 3)
        plane.hear(Cached("prefill-1", [b"a" * 8, b"b" * 8], []))
        plane.hear(Arrived(0.0, "x", 500, [b"a" * 8, b"b" * 8]))
        for i in range(5):
            run(plane, 20, start_s=10.0 * i, prompt_len=500 * (i + 1))
            plane.hear(Tick(10.0 * (i + 1)))
    result = replay(path)
    assert (result.num_differences, result.num_events) == (0, 6 + 2 + 5 * 61)
    assert result.num_answers == 1 + 5 * 41
    text = path.read_text()
    path.write_text(text.replace('"prefill":"prefill-1","decode"', '"prefill":"prefill-2","decode"', 1))
    changed = replay(path)
    assert changed.num_differences == 1
    assert changed.differences[0].line > 1


def test_a_log_that_was_cut_short_is_said(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Journal(path, setup()) as journal:
        journal.write(Joined(0.0, "decode-0", "decode", 10), None)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RequestError, match=r"line 2.*cut short"):
        replay(path)


def test_an_event_round_trips() -> None:
    event: Event = Arrived(1.5, "r", 10, [b"abc"], True)
    assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event


def test_a_prompt_longer_than_the_answers_beside_it_bear_does_not_bend() -> None:
    """The prefill pool is late for both; beside thirty answers of a few tokens the short prompt alone may bend."""

    def reason(prompt_len: int, output_len: int) -> str:
        plane = ControlPlane(setup())
        plane.hear(Joined(0.0, "prefill-0", "prefill", 6250))
        plane.hear(Joined(0.0, "decode-0", "decode", 6250, convertible=True))
        for i in range(300):
            plane.ended(f"before-{i}", output_len + i % 2, 0.1, 0.01)
        for i in range(30):
            arrive(plane, f"beside-{i}", 100)
            plane.hear(Prefilled(0.0, f"beside-{i}"))
        arrive(plane, "long", 20_000)
        return arrive(plane, "last", prompt_len).route.reason

    assert "convertible" in reason(3000, 500)
    assert "convertible" not in reason(3000, 8)


def test_nothing_bends_where_its_kv_has_no_room() -> None:
    def reason(num_blocks: int) -> str:
        plane = ControlPlane(setup())
        plane.hear(Joined(0.0, "prefill-0", "prefill", 6250))
        plane.hear(Joined(0.0, "decode-0", "decode", num_blocks, convertible=True))
        arrive(plane, "first", 1000)
        plane.hear(Prefilled(0.0, "first"))
        arrive(plane, "long", 20_000)
        return arrive(plane, "last", 1000).route.reason

    assert "convertible" in reason(6250)
    assert "convertible" not in reason(100)
