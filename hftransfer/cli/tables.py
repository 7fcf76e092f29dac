"""Tables and lines for the terminal, without loading torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from hftransfer.terminal import console

if TYPE_CHECKING:
    from hftransfer.verdicts import Verdict


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text, the first column on the left and the others on the right."""
    table = Table(title=title, title_justify="left", show_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_verdict(verdict: Verdict) -> None:
    """Print a verdict: its tables, then its words."""
    for table in verdict.tables:
        print_table(table.caption, table.head, table.rows)
        print()
    print(*verdict.words, sep="\n")
