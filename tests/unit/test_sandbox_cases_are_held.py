"""The tables of hard cases and figures name tests and scripts that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sandbox-hard-cases.md").read_text()


def test_every_test_that_the_table_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 60
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {test}"


def test_each_of_the_cases_has_a_row() -> None:
    assert {int(n) for n in re.findall(r"^\| (\d+)\. ", PAGE, re.MULTILINE)} == set(range(1, 22))


def test_every_figure_s_script_is_there() -> None:
    scripts = re.findall(r"`([\w/]+\.py)` \|$", PAGE, re.MULTILINE)
    assert len(scripts) > 15
    for script in scripts:
        assert (ROOT / script).exists() or (ROOT / "tests" / script).exists(), script
