"""`hftransfer compare RUN RUN ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hftransfer.cli.tables import print_table


def compare(*runs: Path, metric: str | None = None, split: Literal["test", "validation"] = "test") -> None:
    """Say whether runs differ, pair by pair, on the test rows that they share.

    Args:
        runs: Folders of runs; those with several seeds count with all of them.
        metric: The score; the one that chose the first run's model when absent.
        split: Which split.
    """
    from hftransfer.report.compare import compare_runs, pair_table

    found = compare_runs(runs, metric, split)
    table = pair_table(found)
    print_table(table.caption, table.head, table.rows)
    print(*found.sentences(), sep="\n")
