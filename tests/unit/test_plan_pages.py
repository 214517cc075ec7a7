"""The pages made of code are what the code would write today, and every verb has its line in the docs."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mortice.cli.plan import plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_pages", ROOT / "benchmarks" / "plan_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_page(pages: ModuleType) -> None:
    """If this fails run benchmarks/plan_pages.py."""
    assert (ROOT / "docs/plan/formulas.md").read_text() == pages.formulas()


def test_published_page(pages: ModuleType) -> None:
    """If this fails run benchmarks/plan_pages.py."""
    assert (ROOT / "docs/plan/published.md").read_text() == pages.published_page()


def test_every_verb_is_in_the_docs() -> None:
    index = (ROOT / "docs/plan/README.md").read_text()
    for command in plan.registered_commands:
        assert f"`{command.name}`" in index


def test_every_page_that_is_linked_exists() -> None:
    import re

    for page in (ROOT / "docs/plan").glob("*.md"):
        for target in re.findall(r"\]\(([\w./-]+\.md)\)", page.read_text()):
            assert (page.parent / target).is_file(), (page.name, target)
