"""What reached the outside world is never done twice by accident."""

from pathlib import Path

import pytest

from mortice.sandbox import EffectLedger
from mortice.specs.errors import RequestError, WrongState


@pytest.fixture
def ledger(tmp_path: Path) -> EffectLedger:
    return EffectLedger(tmp_path / "effects.jsonl", run="r1")


def test_a_step_acts_once_and_gives_its_result_again(ledger: EffectLedger) -> None:
    first = ledger.begin("t1.c0", "pay", {"to": "a", "sum": 5}, epoch=1)
    assert first.decision == "act"
    assert ledger.begin("t1.c0", "pay", {"sum": 5, "to": "a"}, epoch=1).decision == "unknown"
    ledger.finish(first.key, {"receipt": 9})
    again = ledger.begin("t1.c0", "pay", {"to": "a", "sum": 5}, epoch=1)
    assert (again.decision, again.result, again.key) == ("replay", {"receipt": 9}, first.key)
    other = ledger.begin("t1.c0", "pay", {"to": "b", "sum": 5}, epoch=1)
    assert (other.decision, other.earlier) == ("differs", {"to": "a", "sum": 5})
    approved = ledger.begin("t1.c0", "pay", {"to": "b", "sum": 5}, epoch=1, approved=True)
    assert approved.decision == "act"
    assert approved.key != first.key
    ledger.finish(approved.key, "no such account", failed=True)
    assert ledger.begin("t1.c0", "pay", {"to": "b", "sum": 5}, epoch=1, approved=True).decision == "failed"


def test_after_a_restore_the_same_call_replays_at_any_step_and_another_is_asked_about(
    ledger: EffectLedger,
) -> None:
    paid = ledger.begin("t3.c0", "pay", {"to": "a"}, epoch=3)
    ledger.finish(paid.key, "paid")
    assert [e.result for e in ledger.since(2)] == ["paid"]
    assert ledger.since(3) == []
    ledger.rewind(2)
    assert ledger.begin("t3.c1", "pay", {"to": "a"}, epoch=3).decision == "replay"
    assert ledger.begin("t3.c1", "pay", {"to": "mallory"}, epoch=3).decision == "differs"
    assert ledger.begin("t3.c1", "mail", {"to": "a"}, epoch=3).decision == "act"
    ledger.rewind(5)
    assert ledger.begin("t6.c0", "pay", {"to": "b"}, epoch=6).decision == "act", "older effects bind nobody"


def test_a_fork_acts_anew_with_keys_of_its_own_but_credentials_stay_spent(ledger: EffectLedger) -> None:
    first = ledger.begin("t1.c0", "pay", {"to": "a"}, epoch=1, credential="otp-123456")
    ledger.finish(first.key, "paid")
    branch = ledger.fork("what-if")
    with pytest.raises(WrongState):
        branch.begin("t1.c0", "pay", {"to": "a"}, epoch=1, credential="otp-123456")
    anew = branch.begin("t1.c0", "pay", {"to": "a"}, epoch=1)
    assert anew.decision == "act"
    assert anew.key != first.key
    with pytest.raises(RequestError):
        ledger.fork("what-if")
    assert "otp-123456" not in ledger._path.read_text()


def test_every_prefix_of_the_file_is_a_sound_ledger(ledger: EffectLedger, tmp_path: Path) -> None:
    """Power loss at any byte: no line is half believed, and an effect whose intent was lost is free to act."""
    for step in range(3):
        effect = ledger.begin(f"t{step}", "pay", {"n": step}, epoch=step)
        ledger.finish(effect.key, step)
    whole = ledger._path.read_bytes()
    for cut in range(0, len(whole), 7):
        ledger._path.write_bytes(whole[:cut])
        decisions = [ledger.begin(f"t{s}", "pay", {"n": s}, epoch=s).decision for s in range(3)]
        ended = whole[:cut].count(b'"kind":"done"')
        assert decisions.count("replay") <= ended
        assert "act" not in decisions[: whole[:cut].count(b"\n") // 2]
