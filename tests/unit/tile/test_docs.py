"""The tutorial runs as it is printed, its kernels are as short as the language promises, and pages of kernels are what the
registry would write today."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TUTORIAL = ROOT / "docs/tile/tutorial.md"


def program() -> str:
    return "\n\n".join(re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL))


def lines(source: str, name: str) -> int:
    """Of a function, its decorators included, without docstring and blank lines."""
    (node,) = [x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef) and x.name == name]
    first = min([node.lineno, *(x.lineno for x in node.decorator_list)])
    text = source.splitlines()[first - 1 : node.end_lineno]
    count = sum(bool(line.strip()) for line in text)
    if ast.get_docstring(node):
        count -= node.body[0].end_lineno - node.body[0].lineno + 1  # type: ignore[operator]
    return count


def test_the_tutorial_runs(tmp_path: Path):
    file = tmp_path / "tutorial.py"
    file.write_text(program())
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("block") == 2


def test_kernels_are_short():
    from mortice.ops.kernels import gemm, mla, softmax

    source = program()
    assert lines(source, "matmul") <= 10
    assert lines(source, "gemm") <= 20
    assert lines(source, "attention") <= 50
    assert lines(inspect.getsource(gemm), "gemm_nt") <= 20
    helpers = inspect.getsource(softmax)
    inlined = sum(lines(helpers, name) for name in ("softmax_state", "online_softmax", "finish"))
    assert lines(inspect.getsource(mla), "mla_decode") + inlined <= 80


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("tile_pages", ROOT / "benchmarks/tile/pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_of_kernels(pages):
    """If this fails run benchmarks/tile/pages.py. Measured tables follow docs/performance.md when it next runs."""

    def said(text: str) -> str:
        return text.partition("## Measured")[0]

    written = {path.name: said(path.read_text()) for path in (ROOT / "docs/tile/kernels").glob("*.md")}
    assert written == {name: said(text) for name, text in pages.pages().items()}


def test_every_link_of_the_docs_leads_somewhere():
    for page in [*ROOT.glob("docs/tile/*.md"), *ROOT.glob("docs/tile/kernels/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
