"""Catastrophic forgetting: what a run's backbone could do before its training and can do after it (docs/forgetting.md).

Language modelling on general text and on the run's own, under the checkpoint's head; frozen linear probes on reference
tasks; earlier runs, under their own heads where this run began at their weights, else by a probe; drift by depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hftransfer.diagnose import earlier_runs
from hftransfer.diagnose.backbones import Subject, own_texts, read_labelled, read_texts
from hftransfer.diagnose.retained import Measure
from hftransfer.diagnose.watch import Watch
from hftransfer.errors import DataError
from hftransfer.recipe import Recipe
from hftransfer.training import drift_verdict
from hftransfer.verdicts import Estimate, IntervalChart, Verdict, VerdictTable

LITTLE, MUCH = 0.95, 0.8
"""At least so much retained is little forgotten; less than that is much."""

UNSURE = 500.0
"""A head of this perplexity hardly knows the language, so its ratio says little of the backbone."""
DOUBTFUL = (
    "On {0} the checkpoint's own head has a perplexity of {1:,.0f} before the training: it is no good yardstick here; "
    "believe reference tasks before it."
)


@dataclass(frozen=True)
class Asked:
    """What to look at beside the drift.

    Attributes:
        general: File with general text.
        domain: File with text of the task's domain; the run's validation texts when absent.
        reference_tasks: Labelled files for probes.
        earlier: Folders of earlier runs, with their recipes.
        text: Column with the text in these files.
        label: Column with the label.
    """

    general: str | None = None
    domain: str | None = None
    reference_tasks: Sequence[str] = ()
    earlier: Sequence[tuple[Path, Recipe]] = ()
    text: str = "text"
    label: str = "label"


def diagnose(folder: Path, recipe: Recipe, asked: Asked) -> Verdict:
    """Judge what a run forgot.

    Args:
        folder: The run's folder.
        recipe: Its recipe.
        asked: What to look at.

    Raises:
        CheckpointError: If the run or its checkpoint cannot be read.
        DataError: If a file cannot be, the backbone has not learned, or there is nothing to look at.
    """
    texts = {
        name: read_texts(path, f"--{name}", asked.text)
        for name, path in (("general", asked.general), ("domain", asked.domain))
        if path is not None
    }
    labelled = {
        path: read_labelled(path, "--reference_tasks", asked.text, asked.label) for path in asked.reference_tasks
    }
    subject = Subject.load(folder, recipe)
    if "general" in texts and subject.language is None and not labelled:
        raise DataError(
            "the checkpoint has no language-modelling head to read it with",
            where="--general",
            fix="name labelled files with --reference_tasks, which are judged by a linear probe",
        )
    if "domain" not in texts and (recipe.data.train or recipe.data.name):
        texts["domain"] = own_texts(recipe)
    if not texts and not labelled:
        raise DataError("no text to look at", where="diagnose forgetting", fix="name a file with --general")
    tasks = [(f"reference task {Path(path).name}", *found) for path, found in labelled.items()]
    measures = Watch(subject, [(f"{name} text", part) for name, part in texts.items()], tasks).at(1.0)
    for earlier, its_recipe in asked.earlier:
        measures.append(earlier_runs.measure(subject, earlier, its_recipe))
    read = texts.get("domain") or texts.get("general") or next(iter(labelled.values()))[0]
    return verdict(subject, measures, read, asked)


def verdict(subject: Subject, measures: Sequence[Measure], texts: Sequence[str], asked: Asked) -> Verdict:
    """The measures and the drift in words, a table and charts."""
    drift = subject.drift(texts)
    judged = [measure for measure in measures if not measure.known]
    worst = min(judged, key=lambda measure: measure.retained, default=None)
    warns = worst is not None and worst.high < LITTLE
    words = [headline(judged)] if judged else []
    words += [sentence(measure) for measure in measures]
    words += [
        DOUBTFUL.format(one.on, one.before) for one in measures if "perplexity" in one.what and one.before > UNSURE
    ]
    words += drift_verdict.words(drift)
    if worst is None:
        words.append(
            "Nothing general was looked at: name a file with --general, or labelled ones with --reference_tasks."
        )
    if warns:
        given = "--general FILE" if asked.general and subject.language else "--reference_tasks FILE"
        words.append(
            f"What to do: `hftransfer soften RUN --retain {LITTLE} {given}` goes part of the way back to the "
            "checkpoint's weights without training; docs/forgetting.md compares what can be done in the training."
        )
    charts: list[IntervalChart] = [_chart(measures)] if measures else []
    return Verdict(
        key=drift_verdict.KEY,
        title=drift_verdict.TITLE,
        words=words,
        warns=warns,
        tables=[*([_table(measures)] if measures else []), drift_verdict.table(drift)],
        charts=[*charts, drift_verdict.chart(drift)],
    )


def headline(judged: Sequence[Measure]) -> str:
    """The most important thing first: the worst of what was looked at beside the task's own texts."""
    worst = min(judged, key=lambda measure: measure.retained)
    if worst.retained >= LITTLE:
        least = min(judged, key=lambda measure: measure.low)
        # Of some scores there is no interval.
        shown = "" if worst.low == worst.high else f" (95 % interval {worst.low:.0%} to {worst.high:.0%})"
        doubt = ""
        if least.low < LITTLE:
            whose = "the interval" if least is worst else f"the interval on {least.on}, from {least.low:.0%} on,"
            doubt = f"; {whose} does not exclude that more was lost"
        return (
            "Little was forgotten: the worst of what was looked at beside the task's own texts, "
            f"{worst.on}, retains {worst.retained:.0%}{shown}{doubt}."
        )
    unsure = "" if worst.high < LITTLE else ", though the interval does not exclude that little was lost"
    much = "Much" if worst.retained < MUCH else "Something"
    return f"{much} was forgotten: on {worst.on} {worst.retained:.0%} is retained{unsure}."


def sentence(measure: Measure) -> str:
    """One measure in words."""
    return (
        f"On {measure.on} the {measure.what} went from {_number(measure.before)} to {_number(measure.after)}: retained "
        f"{measure.retained:.2f} (95 % interval {measure.low:.2f} to {measure.high:.2f}, {measure.count:,} examples)."
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 2 else f"{value:.4g}"


def _table(measures: Sequence[Measure]) -> VerdictTable:
    return VerdictTable(
        caption="Before and after the training; retained: the ratio, 1 = nothing lost, with its 95 % interval",
        head=["on", "what", "before", "after", "retained", "interval"],
        rows=[
            [
                one.on,
                one.what,
                _number(one.before),
                _number(one.after),
                f"{one.retained:.3f}",
                f"{one.low:.3f} to {one.high:.3f}",
            ]
            for one in measures
        ],
        texts=2,
    )


def _chart(measures: Sequence[Measure]) -> IntervalChart:
    nothing = Estimate(name="nothing lost", value=1.0, is_baseline=True)
    rows = [Estimate(name=one.on, value=one.retained, low=one.low, high=one.high) for one in measures]
    return IntervalChart(
        title="What is retained",
        description="The ratio of what the backbone could do before and can do after, with 95 % intervals.",
        estimates=[*rows, nothing],
        label="retained",
    )
