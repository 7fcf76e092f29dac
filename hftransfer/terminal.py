"""Where tables and lines are printed."""

from __future__ import annotations

from typing import Any

from rich.console import Console

LOG_WIDTH = 120
"""Columns in a log file, where tables are not cut to those of a terminal."""


def console(*, writes: bool = True) -> Console:
    """A console that prints texts as they are: prompts, labels and paths may hold what looks like markup.

    Args:
        writes: Whether anything is printed; of several processes one does.
    """
    plain: dict[str, Any] = {"quiet": not writes, "highlight": False, "markup": False, "emoji": False}
    found = Console(**plain)
    return found if found.is_terminal else Console(**plain, width=LOG_WIDTH)
