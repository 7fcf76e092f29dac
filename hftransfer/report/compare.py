"""Do runs differ? Every pair on the same test rows: intervals, tests, and a sentence in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from hftransfer.errors import DataError
from hftransfer.report import charts, outcomes, statistics
from hftransfer.report.charts import Series, Spot
from hftransfer.report.outcomes import Outcomes
from hftransfer.report.page import RunView, Section, Table, brief, duration, finite, size, spelled
from hftransfer.report.statistics import Difference, Interval
from hftransfer.run_files import SEEDS_FOLDER
from hftransfer.tasks.metrics import did_you_mean, greater_is_better

SIGNIFICANT = 0.05
COUNTED_RIGHT = ("accuracy", "exact_match")


@dataclass(frozen=True)
class Pair:
    """Two runs and how they differ.

    Attributes:
        first: Name of one run.
        second: Name of the other.
        difference: First minus second.
        adjusted: The p-value after Holm's correction over all pairs.
    """

    first: str
    second: str
    difference: Difference
    adjusted: float

    def sentence(self, metric: str) -> str:
        """The result in words."""
        found, interval = self.difference, self.difference.interval
        bounds = f"95 % interval {brief(interval.low)} to {brief(interval.high)}, p = {self.adjusted:.2g}"
        if self.adjusted > SIGNIFICANT:
            return (
                f"{self.first} and {self.second} are not distinguishable at n={found.count:,}: "
                f"{spelled(metric)} differs by {brief(interval.value)} ({bounds}); "
                f"such a test set shows differences from about {brief(found.smallest)} on."
            )
        better, worse = self.first, self.second
        if (interval.value > 0) != greater_is_better(metric):
            better, worse = worse, better
        return (
            f"{better} is better than {worse} at n={found.count:,}: {spelled(metric)} differs by "
            f"{brief(abs(interval.value))} ({bounds})."
        )


@dataclass(frozen=True)
class Comparison:
    """Several runs on the same test rows.

    Attributes:
        metric: The score.
        split: The split.
        intervals: Run -> its score with the interval over examples, and over seeds where it has several.
        pairs: All pairs.
        seeds: Run -> how many seeds it has.
    """

    metric: str
    split: str
    intervals: dict[str, Interval]
    pairs: tuple[Pair, ...]
    seeds: dict[str, int]

    def sentences(self) -> list[str]:
        """Every pair in words."""
        return [pair.sentence(self.metric) for pair in self.pairs]


def names_of(folders: Sequence[Path]) -> list[str]:
    """Short names that tell the runs apart.

    Raises:
        DataError: If a run is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise DataError("a run is named twice", where=str(folders[0].parent), fix="name different runs")
    short = [folder.name for folder in resolved]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def seed_folders(folder: Path) -> list[Path]:
    """The folders of a run's seeds, or the run itself."""
    found = sorted(path for path in (folder / SEEDS_FOLDER).glob("*") if (path / outcomes.FILE).is_file())
    return found or [folder]


def compare_runs(folders: Sequence[Path], metric: str | None = None, split: str = "test") -> Comparison:
    """Compare runs on the rows that they were all tested on.

    Accuracy and exact match of single models are compared by McNemar's test, all else by a paired bootstrap.

    Args:
        folders: Run folders, two or more.
        metric: The score; the one that chose the first run's model when None.
        split: Which split.

    Raises:
        DataError: If a run has no predictions of this split, or other rows, or the score has no intervals.
    """
    if len(folders) < 2:
        raise DataError("one run has nothing to be compared with", where="compare", fix="name two runs or more")
    names = names_of(folders)
    metric = metric or RunView(folders[0]).metric
    runs = [_of_seeds(folder, split) for folder in folders]
    flat = [one for seeds in runs for one in seeds]
    labels = [name for name, seeds in zip(names, runs, strict=True) for _ in seeds]
    aligned = iter(outcomes.align(flat, labels))
    parts = [[next(aligned) for _ in seeds] for seeds in runs]
    known = parts[0][0].scores()
    if metric not in known:
        raise DataError(f"no score {metric!r} to compare", where="--metric", fix=did_you_mean(metric, known))
    found = [_difference(first, second, metric) for first, second in combinations(parts, 2)]
    adjusted = statistics.holm([one.p_value for one in found])
    pairs = tuple(
        Pair(*pair, one, value) for pair, one, value in zip(combinations(names, 2), found, adjusted, strict=True)
    )
    intervals = {name: _interval(seeds, metric) for name, seeds in zip(names, parts, strict=True)}
    return Comparison(metric, split, intervals, pairs, dict(zip(names, map(len, parts), strict=True)))


def _of_seeds(folder: Path, split: str) -> list[Outcomes]:
    """The outcomes of every seed of a run."""
    RunView(folder)
    found = [outcomes.load(path) for path in seed_folders(folder)]
    for one in found:
        if split not in one:
            raise DataError(
                f"was not scored on {split} data", where=str(folder), fix="train with --data.test, or say --split"
            )
    return [one[split] for one in found]


def _resamples(one: Outcomes, metric: str) -> int:
    return outcomes.RANKED_RESAMPLES if metric in outcomes.RANKED.get(one.kind, ()) else statistics.RESAMPLES


def _interval(seeds: Sequence[Outcomes], metric: str) -> Interval:
    parts = [one.statistic(metric) for one in seeds]
    return statistics.over_examples_and_seeds(parts, resamples=_resamples(seeds[0], metric))


def _difference(first: Sequence[Outcomes], second: Sequence[Outcomes], metric: str) -> Difference:
    """McNemar where both are single models whose predictions are right or wrong, else the paired bootstrap."""
    one, other = ([part.statistic(metric) for part in parts] for parts in (first, second))
    found = statistics.compare(one, other, resamples=_resamples(first[0], metric))
    right, right_other = first[0].right(), second[0].right()
    if len(first) == len(second) == 1 and metric in COUNTED_RIGHT and right is not None and right_other is not None:
        only = int(np.sum(right & ~right_other)), int(np.sum(~right & right_other))
        return replace(found, p_value=statistics.mcnemar(*only), test="McNemar")
    return found


def pair_table(found: Comparison) -> Table:
    """Every pair with its numbers."""
    rows = [
        [
            f"{pair.first} - {pair.second}",
            brief(pair.difference.interval.value),
            f"{brief(pair.difference.interval.low)} to {brief(pair.difference.interval.high)}",
            f"{pair.difference.p_value:.3g}",
            f"{pair.adjusted:.3g}",
            brief(pair.difference.smallest),
            pair.difference.test,
        ]
        for pair in found.pairs
    ]
    head = ["pair", "difference", "95 % interval", "p", "p, Holm", "smallest difference shown", "test"]
    return Table(head, rows, f"{spelled(found.metric)} on {found.split}, first minus second.")


def sections_of(runs: Sequence[RunView], names: Sequence[str], found: Comparison | None, trouble: str) -> list[Section]:
    """The parts of a page that shows runs side by side.

    Args:
        runs: The runs.
        names: Their names.
        found: Their comparison.
        trouble: Why there is none.
    """
    metric = found.metric if found else runs[0].metric
    spots = [Spot(name, one.value, one.low, one.high) for name, one in (found.intervals.items() if found else ())] or [
        Spot(name, finite(run.scores.get(metric)), *(run.interval(metric) or (None, None)))
        for name, run in zip(names, runs, strict=True)
    ]
    label = f"{spelled(metric)} on {runs[0].split}"
    parts = [
        Section(
            "result",
            "Result",
            "" if found else f"The runs are not compared by a test: {trouble}.",
            [charts.intervals(f"{spelled(metric)} of every run", "Whiskers are 95 % intervals.", spots, label)],
            [pair_table(found)] if found else [],
        ),
        _scores(runs, names),
        _curves(runs, names, metric),
        _costs(runs, names),
    ]
    return [part for part in parts if part.charts or part.tables]


def _scores(runs: Sequence[RunView], names: Sequence[str]) -> Section:
    every = dict.fromkeys(name for run in runs for name in run.scores)
    rows = [[spelled(name), *(brief(run.scores.get(name)) for run in runs)] for name in every]
    return Section("scores", "Scores", tables=[Table(["score", *names], rows)])


def _curves(runs: Sequence[RunView], names: Sequence[str], metric: str) -> Section:
    """Validation scores and losses over the epochs."""

    def series(key: str, marked: bool) -> list[Series]:
        return [
            Series(name, [(one["epoch"], finite(one[key])) for one in run.log if key in one], marked)
            for name, run in zip(names, runs, strict=True)
        ]

    validation = f"validation {spelled(metric)}"
    return Section(
        "curves",
        "Learning curves",
        charts=[
            charts.lines("Training loss", "One line per run.", series("loss", False), "epoch", "training loss"),
            charts.lines(validation, "One line per run.", series(f"validation_{metric}", True), "epoch", validation),
        ],
    )


def _costs(runs: Sequence[RunView], names: Sequence[str]) -> Section:
    told = [run.metrics.get("training", {}) for run in runs]
    rows = [
        ["strategy", *(str(run.setting("strategy.type", "")) for run in runs)],
        ["training", *(duration(one.get("seconds_of_all_seeds", one.get("seconds"))) for one in told)],
        ["parameters that learn", *(f"{one.get('trained_parameters', 0):,}" for one in told)],
        ["saved by the cache", *(duration(one.get("cache_saved_seconds")) for one in told)],
        ["peak memory", *(size(run.facts.get("machine", {}).get("peak_memory_bytes")) for run in runs)],
    ]
    return Section("cost", "Time and memory", tables=[Table(["", *names], rows)])
