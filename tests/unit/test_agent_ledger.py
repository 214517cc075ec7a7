"""The effect ledger: nothing is done to the world twice unnoticed."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mortice.agent.ledger import Ledger, RunEffects, key_of


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(f"sqlite:///{tmp_path / 'effects.db'}")
    yield made
    made.close()


def begin(ledger, run="r", turn=1, call=0, tool="pay", arguments=None, **flags):
    flags = {"idempotent": False, "approved": False} | flags
    return ledger.begin(run, turn, call, tool, arguments or {"amount": 5}, **flags)


def test_a_finished_effect_is_replayed(ledger):
    begun = begin(ledger)
    assert (begun.action, begun.key) == ("go", key_of("r", 1, 0))
    ledger.finish(begun.key, {"receipt": 7})
    again = begin(ledger)
    assert (again.action, again.result) == ("replay", {"receipt": 7})


def test_an_interrupted_effect_needs_a_human_unless_it_is_idempotent(ledger):
    begin(ledger)
    assert begin(ledger).action == "ask"
    assert "nobody knows" in begin(ledger).reason
    assert begin(ledger, idempotent=True).action == "go"
    assert begin(ledger, approved=True).action == "go"


def test_another_call_at_the_same_place_is_refused(ledger):
    begin(ledger)
    assert begin(ledger, arguments={"amount": 6}, approved=True).action == "refuse"


def test_a_branch_replays_the_same_call_once_and_asks_about_another(ledger):
    begun = begin(ledger, turn=4)
    ledger.finish(begun.key, "paid 5")
    ledger.branch("r~1", "r", 3, "replay")
    assert [e.tool for e in ledger.facts("r~1", at_turn=3)] == ["pay"]
    assert ledger.facts("r~1", at_turn=4) == []
    assert begin(ledger, "r~1", 3, arguments={"amount": 9}).action == "ask"
    replayed = begin(ledger, "r~1", 3)
    assert (replayed.action, replayed.result) == ("replay", "paid 5")
    assert begin(ledger, "r~1", 5).action == "go"  # the second time is a second payment


def test_what_was_before_the_branch_is_its_own_past(ledger):
    ledger.finish(begin(ledger, turn=1).key, "early")
    ledger.branch("r~1", "r", 3, "replay")
    assert begin(ledger, "r~1", 3).action == "go"


def test_a_branch_of_a_branch_sees_both(ledger):
    ledger.finish(begin(ledger, turn=5).key, "root")
    ledger.branch("r~1", "r", 3, "replay")
    ledger.branch("r~1~1", "r~1", 3, "replay")
    assert begin(ledger, "r~1~1", 3).action == "replay"


def test_anew_does_it_again_under_a_new_key(ledger):
    first = begin(ledger, turn=4)
    ledger.finish(first.key, "paid")
    ledger.branch("r~1", "r", 3, "anew")
    again = begin(ledger, "r~1", 4)
    assert again.action == "go"
    assert again.key != first.key


def test_a_one_time_value_is_spent_on_every_branch(ledger):
    arguments = {"token": "t-1", "amount": 1}
    assert begin(ledger, arguments=arguments, one_time=("token",)).action == "go"
    ledger.branch("r~1", "r", 0, "anew")
    other = {"token": "t-1", "amount": 2}
    assert begin(ledger, "r~1", 2, arguments=other, one_time=("token",), approved=True).action == "refuse"
    assert begin(ledger, "r~1", 3, arguments=other | {"token": "t-2"}, one_time=("token",)).action == "go"


def test_of_several_processes_one_goes(tmp_path):
    program = (
        "import sys; from mortice.agent.ledger import Ledger\n"
        "ledger = Ledger(sys.argv[1])\n"
        "print(ledger.begin('r', 1, 0, 'pay', {'amount': 5}, idempotent=False, approved=False).action)"
    )
    command = [sys.executable, "-c", program, f"sqlite:///{tmp_path / 'effects.db'}"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    actions = sorted(worker.communicate(timeout=60)[0].strip() for worker in workers)
    assert actions == ["ask", "go"]


def test_of_several_threads_one_goes(ledger):
    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            actions = sorted(pool.map(lambda _, turn=turn: begin(ledger, turn=turn).action, range(8)))
            assert actions == ["ask"] * 7 + ["go"]


def test_a_run_that_goes_back_to_an_epoch_replays_what_came_after_it(ledger):
    effects = RunEffects(ledger, "job")
    for turn in (1, 2, 3):
        ledger.finish(begin(ledger, effects.run, turn, arguments={"amount": turn}).key, f"receipt {turn}")
    assert (effects.run, effects.num_entries) == ("job", 3)
    effects.rewind(1)
    again = RunEffects(ledger, "job")  # as another process would find it
    assert again.run == effects.run == "job@1"
    replayed = begin(ledger, again.run, 2, arguments={"amount": 3})  # worded in another order than before
    assert (replayed.action, replayed.result) == ("replay", "receipt 3")
    assert begin(ledger, again.run, 2, call=1, arguments={"amount": 9}).action == "ask"
    assert begin(ledger, again.run, 2, call=2, tool="mail").action == "go"
    assert begin(ledger, again.run, 2, call=3, arguments={"amount": 1}).action == "ask", "turn 1 was before"
    again.rewind(1)
    assert begin(ledger, again.run, 2, arguments={"amount": 3}).action == "replay"
    again.rewind(5)
    assert begin(ledger, again.run, 6, arguments={"amount": 3}).action == "ask", (
        "it was replayed before this point"
    )
    assert begin(ledger, again.run, 6, call=1, arguments={"amount": 2}).action == "replay"
    assert begin(ledger, again.run, 6, call=2, arguments={"amount": 9}).action == "go"
    assert again.run == "job@3"


def test_of_runs_whose_names_begin_alike_each_has_its_own_branches(ledger):
    RunEffects(ledger, "a%").rewind(0)
    RunEffects(ledger, "ab").rewind(0)
    assert RunEffects(ledger, "a").run == "a"
    assert RunEffects(ledger, "a%").run == "a%@1"
