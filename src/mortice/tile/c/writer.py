"""Lines of C with their indent, and where in the kernel's file they come from."""

from mortice.tile.diagnostics import NOWHERE, Span


class Writer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 0
        self.marked: Span = NOWHERE
        self.count = 0

    def fresh(self, name: str) -> str:
        """An identifier that neither kernels nor the prelude have."""
        self.count += 1
        return f"{name}{self.count}__"

    def line(self, text: str, open: bool = False) -> None:
        indent = "" if text.startswith("#") else "    " * self.depth
        self.lines.append(indent + text)
        self.depth += open

    def close(self) -> None:
        self.depth -= 1
        self.lines.append("    " * self.depth + "}")

    def mark(self, span: Span) -> None:
        """A comment with the kernel's line, where it changes."""
        if span != NOWHERE and span.line != self.marked.line:
            self.marked = span
            self.line(f"/* line {span.line} */")

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"
