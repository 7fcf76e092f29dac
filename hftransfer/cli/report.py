"""`hftransfer report RUN` and `hftransfer report RUN RUN ...`."""

from __future__ import annotations

from pathlib import Path

from hftransfer.safety.files import check_output_file


def report(*runs: Path, output: Path | None = None, metric: str | None = None) -> None:
    """Write a run's report.html anew, or a page that shows several runs side by side.

    Args:
        runs: Folders of runs.
        output: The page of several runs; comparison.html in the working folder when absent.
        metric: The score to compare several runs by.
    """
    from hftransfer.errors import DataError
    from hftransfer.report.html import write_comparison, write_report

    if not runs:
        raise DataError("no run", where="report", fix="name a run's folder")
    if len(runs) == 1:
        if output is not None or metric is not None:
            raise DataError("--output and --metric are for several runs", where="report", fix="leave them out")
        print(write_report(runs[0]))
        return
    output = output or Path("comparison.html")
    check_output_file(output, (".html",))
    print(write_comparison(runs, output, metric))
