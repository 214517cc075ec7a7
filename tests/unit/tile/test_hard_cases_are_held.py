"""The table of hard cases names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_test_that_the_table_names_is_there():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs/tile/hard-cases.md").read_text())
    assert len(named) > 50
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {test}"
