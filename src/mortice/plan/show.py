"""An answer on a terminal."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from mortice.plan.answer import Answer, Table
from mortice.plan.words import cell

_LEFT = ("text", "yes")


def show(answer: Answer, console: Console) -> None:
    console.print(Text(answer.title, style="bold"))
    if answer.verdict:
        console.print(Text(answer.verdict))
    for table in answer.tables:
        console.print()
        console.print(_table(table))
    for note in answer.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    if answer.assumed:
        console.print(Text("assumed, because not given:", style="dim"))
        for assumed in answer.assumed:
            line = Text(f"{assumed.name} = {assumed.value}  ({assumed.why})", style="dim")
            console.print(Padding(line, (0, 0, 0, 2)))
    if answer.formulas:
        console.print(Text(f"formulas: mortice plan explain {' | '.join(answer.formulas)}", style="dim"))


def _table(table: Table) -> RichTable:
    shown = RichTable(
        title=table.title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for column in table.columns:
        left = column.kind in _LEFT
        shown.add_column(column.title, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for i, row in enumerate(table.rows):
        cells = [cell(row.get(c.key), c.kind) for c in table.columns]
        shown.add_row(*(Text(c) for c in cells), style="bold green" if i == table.best else None)
    return shown
