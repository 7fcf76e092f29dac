"""report.html: one page that opens offline, without scripts; every text from data is escaped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftransfer.errors import DataError
from hftransfer.report import compare, sections
from hftransfer.report.page import RunView, Section, duration, size, spelled
from hftransfer.report.svg import number
from hftransfer.report.verdict_sections import of_verdict
from hftransfer.run_files import REPORT_FILE, write_whole
from hftransfer.verdicts import Verdict

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "page.html"


@cache
def _template() -> Template:
    """The page's template, with everything escaped that is not markup already."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(TEMPLATE)


def render(
    title: str, subtitle: str, lead: str, remark: str, cards: Sequence[tuple[str, str]], parts: Sequence[Section]
) -> str:
    """A page.

    Args:
        title: Its heading.
        subtitle: What it is about, above the lead.
        lead: The result in a sentence.
        remark: What else must be said at once.
        cards: Names and values of a few key figures.
        parts: Its sections.
    """
    return _template().render(
        title=title,
        subtitle=subtitle,
        lead=lead,
        remark=remark,
        cards=cards,
        parts=parts,
        version=sys.modules["hftransfer"].__version__,
    )


def write_report(folder: Path) -> Path:
    """Write a run's report.html from what its folder holds.

    Args:
        folder: The run's folder.

    Returns:
        The file.

    Raises:
        DataError: If the folder is no finished run.
    """
    run = RunView(folder)
    about = run.metrics.get("training", {})
    task, strategy = run.setting("task.type", "model"), run.setting("strategy.type", "")
    problem = run.setting("task.problem")
    what = " · ".join(part.replace("_", " ") for part in (task, problem, strategy) if part)
    cards: list[tuple[str, Any]] = [
        (f"{spelled(run.metric)}, {run.split}", number(run.scores.get(run.metric))),
        ("examples to train on", f"{about.get('train_examples', 0):,}"),
        ("parameters that learn", f"{about.get('trained_parameters', 0):,}"),
        ("training", duration(about.get("seconds"))),
        ("peak memory", size(run.facts.get("machine", {}).get("peak_memory_bytes"))),
    ]
    if about.get("cache_saved_seconds", 0) > 0:
        cards.append(("saved by the cache", duration(about["cache_saved_seconds"])))
    checkpoint = str(run.setting("checkpoint", "")).rstrip("/").rpartition("/")[2]
    page = render(
        run.name, f"{what} · {checkpoint}", sections.sentence(run), sections.verdict(run), cards, sections.of_run(run)
    )
    write_whole(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def write_comparison(folders: Sequence[Path], output: Path, metric: str | None = None) -> Path:
    """Write a page that shows runs side by side.

    Args:
        folders: Their folders.
        output: The page.
        metric: The score to compare; that of the first run when None.

    Raises:
        DataError: If a folder is no finished run.
    """
    names, runs = compare.names_of(folders), [RunView(folder) for folder in folders]
    found, trouble = None, ""
    try:
        found = compare.compare_runs(folders, metric, runs[0].split)
    except DataError as reason:
        # Runs on other data are still worth a look, side by side; what is wrong with the command line is not.
        if reason.where == "--metric":
            raise
        trouble = str(reason)
    lead = " ".join(found.sentences()[:3]) if found else f"{len(runs)} runs side by side."
    more = f"{len(found.pairs) - 3} more pairs below." if found and len(found.pairs) > 3 else ""
    parts = compare.sections_of(runs, names, found, trouble)
    write_whole(output, render("Comparison", " · ".join(names), lead, more, [], parts))
    return output


def write_verdicts(verdicts: Sequence[Verdict], about: str, output: Path) -> Path:
    """Write a page of verdicts that belong to no run.

    Args:
        verdicts: What was judged.
        about: What it is about: data, checkpoint.
        output: The page.
    """
    first, *more = verdicts[0].words
    parts = [of_verdict(verdict) for verdict in verdicts]
    write_whole(output, render(verdicts[0].title, about, first, " ".join(more[:1]), [], parts))
    return output
