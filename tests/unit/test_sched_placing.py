"""Where a worker starts."""

from mortice.sched.placing import Place, choose_place


def test_it_goes_where_partners_are() -> None:
    here, there = Place(4, {"prefill": 1, "decode": 1}), Place(1, {"decode": 1})
    assert choose_place("prefill", [here, there]) == 1
    assert choose_place("decode", [here, there]) == 0


def test_undivided_workers_spread() -> None:
    assert choose_place("mixed", [Place(4, {"mixed": 2}), Place(4, {"mixed": 1}), Place(4, {})]) == 2
    assert choose_place("mixed", [Place(4, {"decode": 3}), Place(4, {"decode": 1})]) == 1


def test_a_full_host_takes_nothing() -> None:
    full = Place(0, {"decode": 2})
    assert choose_place("prefill", [full, Place(1, {"prefill": 3})]) == 1
    assert choose_place("prefill", [full]) is None
    assert choose_place("prefill", []) is None


def test_the_first_of_equals() -> None:
    assert choose_place("decode", [Place(1, {}), Place(9, {})]) == 0
