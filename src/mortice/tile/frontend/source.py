"""The syntax tree of a Python function, at its true place in its file."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mortice.tile.diagnostics import NOWHERE, Span, TileError


@dataclass(frozen=True)
class Source:
    tree: ast.FunctionDef
    file: str
    names: dict[str, Any]  # globals and what the function closes over
    text: str

    def span(self, node: ast.AST) -> Span:
        return Span(self.file, getattr(node, "lineno", 0), getattr(node, "col_offset", 0) + 1)


def read(function: Callable[..., Any]) -> Source:
    """Raises TileError if Python no longer has the text (typed at a prompt)."""
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        raise TileError(
            NOWHERE, function.__name__, f"its source cannot be read: {error}", "put it in a file"
        ) from None
    text = textwrap.dedent("".join(lines))
    indent = len(lines[0]) - len(lines[0].lstrip())
    tree = ast.parse(text).body[0]
    assert isinstance(tree, ast.FunctionDef)
    ast.increment_lineno(tree, first - 1)
    for node in ast.walk(tree):
        if hasattr(node, "col_offset"):
            node.col_offset += indent
    closure = inspect.getclosurevars(function)
    names = dict(function.__globals__) | dict(closure.nonlocals)
    return Source(tree, inspect.getsourcefile(function) or "<unknown>", names, text)
