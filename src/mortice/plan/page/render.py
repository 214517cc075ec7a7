"""Several answers on one HTML page that needs nothing but itself: no network, light and dark, printable."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from mortice import __version__
from mortice.plan.answer import Answer, Table
from mortice.plan.charts import svg
from mortice.plan.formulas import formula
from mortice.plan.words import cell
from mortice.specs.errors import RequestError

_DARK = (
    "color-scheme: dark; --paper: #14171b; --card: #1a1e23; --ink: #e6e8eb; --faint: #98a1ad; --grid: #30363e; "
    "--limit: #ef8a62; --accent: #5fb3d0; --good: #7cc48d; --wash: #1c2930; --c0: #5fb3d0; --c1: #e0a856; "
    "--c2: #84bd83; --c3: #b58cc9; --c4: #e07f91; --c5: #93a3bf; --c6: #62c7bc; --c7: #c3a675; --c8: #93b4e0;"
)
_LABELS = {"kv": "KV", "afd": "AFD", "ep": "Expert parallelism"}


def render(
    title: str, lead: str, facts: Sequence[tuple[str, str]], answers: Sequence[Answer], *, command: str
) -> str:
    """The page. Raises RequestError where jinja2 or matplotlib is not installed."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise RequestError("report needs jinja2: pip install 'mortice[plan]'", param="report") from error
    source = files("mortice.plan.page").joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    sections = [
        {
            "id": answer.verb,
            "label": _LABELS.get(answer.verb, answer.verb.capitalize()),
            "answer": answer,
            "charts": [{"title": c.title, "svg": Markup(svg(c))} for c in answer.charts],
            "tables": [_table(t) for t in answer.tables],
            "formulas": [formula(name) for name in answer.formulas],
        }
        for answer in answers
    ]
    return environment.from_string(source).render(
        title=title,
        lead=lead,
        facts=facts,
        sections=sections,
        dark=Markup(_DARK),
        command=command,
        version=__version__,
        open_details=False,
    )


def write(page: str, path: Path) -> None:
    """Raises RequestError if the file cannot be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}", param="--out") from error


def _table(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "best": table.best,
        "columns": [{"title": c.title, "left": c.kind in ("text", "yes")} for c in table.columns],
        "rows": [[cell(row.get(c.key), c.kind) for c in table.columns] for row in table.rows],
    }
