"""The parts of one run's page, each from what the run folder holds; a part without data is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from hftransfer.report import charts
from hftransfer.report.charts import Series, Spot
from hftransfer.report.data_sections import cost, examples, lengths, recipe
from hftransfer.report.page import RunView, Section, Table, brief, finite, spelled, with_interval
from hftransfer.report.svg import NONE, number
from hftransfer.report.verdict_sections import of_verdict
from hftransfer.tasks.metrics import greater_is_better
from hftransfer.verdicts import read_verdicts

MOST_SPOTS = 40
KEPT_WORDS = {
    "best": ", whose weights were kept.",
    "last": "; the last weights were kept.",
    "ema": "; a moving average of the weights was scored and kept.",
    "soup": "; the mean of some evaluated weights was kept, a greedy soup.",
}


def sentence(run: RunView) -> str:
    """The result in words: the score, its interval, and what it must beat."""
    interval, value = run.interval(run.metric), run.scores.get(run.metric)
    bounds = f" (95 % interval {brief(interval[0])} to {brief(interval[1])})" if interval else ""
    where = f"{run.count:,} {run.split} example" + ("s" if run.count != 1 else "")
    name = spelled(run.metric)
    text = f"{name[0].upper() if name.islower() else name[0]}{name[1:]} on {where} is {brief(value)}{bounds}"
    rivals = {name: scores[run.metric] for name, scores in run.baselines.items() if scores.get(run.metric) is not None}
    if rivals:
        told = [f"{brief(score)} for {name}" for name, score in rivals.items()]
        text += f", against {' and '.join(told)}"
    return f"{text}."


def verdict(run: RunView) -> str:
    """What the interval and the baselines allow to say."""
    remarks = []
    greater = greater_is_better(run.metric)
    interval = run.interval(run.metric)
    rivals = [scores[run.metric] for scores in run.baselines.values() if scores.get(run.metric) is not None]
    if rivals and interval is not None:
        best = max(rivals) if greater else min(rivals)
        worse_end = interval[0] if greater else interval[1]
        if (worse_end > best) == greater and worse_end != best:
            remarks.append("The whole interval is better than the best baseline.")
        else:
            remarks.append("The interval does not exclude the best baseline: do not count on the difference.")
    if run.split == "validation":
        stopped = run.setting("evaluation.early_stopping_patience") is not None
        chose = run.seeds or stopped or run.setting("evaluation.keep") != "last"
        remarks.append(
            "There is no test set: the validation examples also chose the model, so expect less on new data."
            if chose
            else "There is no test set: what was tuned by the validation examples may do less well on new data."
        )
    if run.count < 200:
        remarks.append(f"{run.count} examples are few; the interval is the result.")
    if run.seeds:
        about = run.seeds[run.split][run.metric]
        count = len(run.seeds["values"])
        remarks.append(
            f"Over {count} seeds the mean is {brief(about['mean'])}, the standard deviation {brief(about['sd'])}."
        )
    return " ".join(remarks)


def result(run: RunView) -> Section:
    """The score beside its baselines, and all scores."""
    metric, interval = run.metric, run.interval(run.metric) or (None, None)
    spots = [Spot("this model", finite(run.scores.get(metric)), *interval)]
    if run.seeds:
        about = run.seeds[run.split][metric]
        low, high = about["interval"]
        spots.append(Spot(f"mean of {len(run.seeds['values'])} seeds", finite(about["mean"]), low, high))
    spots += [Spot(name, finite(scores.get(metric)), is_baseline=True) for name, scores in run.baselines.items()]
    chart = charts.intervals(
        f"{spelled(metric)} of this model and of the baselines",
        "Dots are scores, whiskers 95 % intervals over examples; baselines are hollow.",
        spots,
        f"{spelled(metric)} on {run.split}",
    )
    splits = [split for split in ("validation", "test") if split in run.metrics]
    names = [name for name in run.metrics[splits[0]] if not name.startswith("f1/")]
    rows = [
        [
            spelled(name),
            *(with_interval(run.metrics[split].get(name), run.interval(name, split)) for split in splits),
            *(brief(scores.get(name)) for scores in run.baselines.values()),
        ]
        for name in names
    ]
    table = Table(
        ["score", *splits, *run.baselines],
        rows,
        "Scores with 95 % intervals over examples, where the score is a function of single examples; baselines on "
        f"{run.split}.",
    )
    return Section("result", "Result", charts=[chart], tables=[table])


def seeds(run: RunView) -> Section | None:
    """Every seed, and how much of the best one's lead is luck."""
    if not run.seeds:
        return None
    metric, about = run.metric, run.seeds
    rows = [
        [seed, *(brief(values[split][metric]) for split in about["splits"])] for seed, values in about["values"].items()
    ]
    summary = [
        [
            f"{spelled(metric)}, {split}",
            brief(about[split][metric]["mean"]),
            brief(about[split][metric]["sd"]),
            " to ".join(map(brief, about[split][metric]["interval"])),
            " to ".join(map(brief, about[split][metric]["over_seeds"])),
        ]
        for split in about["splits"]
    ]
    luck = about.get("best_of")
    text = f"The saved model is that of seed {about['chosen']}, which validation chose; every model was tested once."
    if luck:
        text += (
            f" On validation it is {brief(luck['lead_on_validation'])} better than the mean seed, on test "
            f"{brief(luck['lead_on_test'])}: {brief(luck['optimism'])} of the lead is the luck of choosing."
        )
    spots = [Spot(f"seed {seed}", finite(values[run.split][metric])) for seed, values in about["values"].items()]
    chart = charts.intervals(
        f"{spelled(metric)} of every seed", "One dot per seed.", spots, f"{spelled(metric)} on {run.split}"
    )
    tables = [
        Table(
            [
                "score",
                "mean",
                "standard deviation",
                "interval over examples and seeds",
                "interval of the mean over seeds",
            ],
            summary,
        )
    ]
    return Section("seeds", "Seeds", text, [chart], tables, [Table(["seed", *about["splits"]], rows)])


def curves(run: RunView) -> Section | None:
    """Loss and validation score over the steps."""
    losses = [(one["step"], finite(one["loss"])) for one in run.log if "loss" in one]
    key = f"validation_{run.metric}"
    scores = [(one["step"], finite(one[key])) for one in run.log if key in one]
    if not losses:
        return None
    best = run.metrics["training"].get("best_step")
    kept = "The ring marks the best evaluation"
    kept += KEPT_WORDS.get(run.setting("evaluation.keep"), ".")
    figures = [
        charts.lines(
            "Training loss",
            "Mean loss since the last record.",
            [Series("training loss", losses)],
            "optimizer step",
            "training loss",
        )
    ]
    if scores:
        series = Series(f"validation {spelled(run.metric)}", scores, marked=True, ringed=best)
        name = f"Validation {spelled(run.metric)}"
        figures.append(charts.lines(name, "One dot per evaluation.", [series], "optimizer step", series.name))
    head = ["step", "stage", "training loss", f"validation {spelled(run.metric)}"]
    by_step: dict[int, list[str]] = {}
    for one in run.log:
        row = by_step.setdefault(one["step"], [str(one["step"]), "", "", ""])
        if "loss" in one:
            row[1:3] = [one["stage"], number(finite(one["loss"]))]
        if key in one:
            row[3] = number(finite(one[key]))
    return Section("curves", "Learning curves", kept, figures, hidden=[Table(head, list(by_step.values()), texts=2)])


def _rate(learned: Mapping[str, Any]) -> str:
    """The peak rate of a depth in words."""
    return "fitted" if learned["rate"] is None else number(learned["rate"])


def rates(run: RunView) -> Section | None:
    """Peak learning rates by depth and stage, and the schedule."""
    stages = run.facts.get("rates")
    if not stages:
        return None
    depths = sorted({one["depth"] for stage in stages for one in stage["depths"]}, reverse=True)
    by_stage = [{one["depth"]: one for one in stage["depths"]} for stage in stages]
    every = [one["rate"] for found in by_stage for one in found.values() if one["rate"] is not None]
    low, high = math.log(min(every)), math.log(max(every))
    head_depth = run.facts.get("head_depth", depths[0])

    def share(rate: float | None) -> float:
        if rate is None:
            return 1.0
        return 0.35 + 0.65 * ((math.log(rate) - low) / (high - low) if high > low else 0.0)

    names = {0: "embeddings (0)", head_depth: f"head ({head_depth})"}
    rows = [names.get(depth, f"block {depth}") for depth in depths]
    columns = [f"{stage['start']}-{stage['end']}" for stage in stages]
    shares = [[share(found[depth]["rate"]) if depth in found else None for found in by_stage] for depth in depths]
    texts = [[_rate(found[depth]) if depth in found else "frozen" for found in by_stage] for depth in depths]
    grid = charts.grid(
        "Peak learning rate by depth and stage",
        "Empty cells are frozen.",
        rows,
        columns,
        shares,
        texts,
        ("depth", "steps of the stage"),
    )
    schedule = [(one["step"], finite(one["learning_rate"])) for one in run.log if "learning_rate" in one]
    line = charts.lines(
        "Learning rate over the steps",
        "The highest rate of all groups.",
        [Series("learning rate", schedule)],
        "optimizer step",
        "learning rate",
    )
    counts = [[f"{found[depth]['parameters']:,}" if depth in found else NONE for found in by_stage] for depth in depths]
    hidden = [
        Table(["depth", *columns], [[name, *cells] for name, cells in zip(rows, texts, strict=True)], "Peak rates"),
        Table(
            ["depth", *columns],
            [[name, *cells] for name, cells in zip(rows, counts, strict=True)],
            "Parameters that learn",
        ),
    ]
    frozen = head_depth + 1 - len(depths)
    text = f"Each stage warms up and falls anew ({run.setting('optim.lr_scheduler_type', 'linear')})."
    if frozen > 0:
        text += f" {frozen} of {head_depth + 1} depths never learn."
    return Section("rates", "Learning rates", text, [grid, line], hidden=hidden)


def confusion(run: RunView) -> Section | None:
    """Which class is taken for which."""
    found = run.facts.get("confusion")
    if not found:
        return None
    names, counts = found["names"], found["counts"]
    totals = [max(sum(row), 1) for row in counts]
    shares = [[value / total for value in row] for row, total in zip(counts, totals, strict=True)]
    texts = [[f"{value:,}" if value else "" for value in row] for row in counts]
    chart = charts.grid(
        "Confusion matrix", "Counts; shades are shares of a row.", names, names, shares, texts, ("right", "predicted")
    )
    pairs = sorted(
        (
            (value, right, guess)
            for r, right in enumerate(names)
            for g, guess in enumerate(names)
            if (value := counts[r][g]) and r != g
        ),
        reverse=True,
    )
    worst = ", ".join(f"{right} taken for {guess} ({value:,})" for value, right, guess in pairs[:3])
    rows = [[name, *(f"{value:,}" for value in row)] for name, row in zip(names, counts, strict=True)]
    text = f"Most frequent: {worst}." if worst else "No class was taken for another."
    return Section("confusion", "Confusion matrix", text, [chart], hidden=[Table(["right \\ predicted", *names], rows)])


def classes(run: RunView) -> Section | None:
    """F1 of every class with its interval, and how many examples it has."""
    names = [name[3:] for name in run.scores if name.startswith("f1/")]
    if not names:
        return None
    counts = run.facts.get("classes", {})
    spots, rows = [], []
    for name in sorted(names, key=lambda name: finite(run.scores[f"f1/{name}"]), reverse=True):
        value, interval = run.scores[f"f1/{name}"], run.interval(f"f1/{name}")
        spots.append(Spot(name, finite(value), *(interval or (None, None))))
        shares = [f"{counts[split].get(name, 0):,}" for split in counts]
        rivals = [brief(finite(scores.get(f"f1/{name}"))) for scores in run.baselines.values()]
        rows.append([name, brief(value), " to ".join(map(brief, interval)) if interval else NONE, *rivals, *shares])
    chart = charts.intervals(
        "F1 by class", "Dots are scores, whiskers 95 % intervals.", spots[:MOST_SPOTS], f"F1 on {run.split}"
    )
    head = [
        "class",
        "F1",
        "95 % interval",
        *(f"{name}: F1" for name in run.baselines),
        *(f"in {split}" for split in counts),
    ]
    return Section("classes", "Classes", charts=[chart], tables=[Table(head, rows)])


def reliability(run: RunView) -> Section | None:
    """Whether probabilities mean what they say, before and after calibration."""
    about = run.metrics.get("calibration", {})
    found = about.get("splits", {}).get(run.split)
    if not found:
        return None
    folded = not about["note"]
    stages = ("before", "after") if folded else ("after",)
    title = {"before": "before", "after": "after calibration" if folded else "this model"}
    groups = [
        (title[one], found[one]["confidences_K"], found[one]["right_K"], found[one]["counts_K"]) for one in stages
    ]
    chart = charts.reliability(
        "Reliability",
        "On the dashed line confidence equals the share that is right; larger dots hold more decisions.",
        groups,
    )
    rows = [[title[one], f"{finite(found[one]['error']):.4f}", f"{finite(found[one]['loss']):.4f}"] for one in stages]
    if folded:
        text = f"A temperature of {number(about['temperature'])}, fitted on validation data, is part of the saved head"
        text += (
            ", and so are the labels' thresholds: a label is to be predicted from 0.5 on." if about["shifts_C"] else "."
        )
    else:
        text = f"Not calibrated: {about['note']}."
    bins = [
        [title[one], number(confidence), number(right), f"{count:,}"]
        for one in stages
        for confidence, right, count in zip(
            found[one]["confidences_K"], found[one]["right_K"], found[one]["counts_K"], strict=True
        )
        if count
    ]
    tables = [Table(["", "expected calibration error", "negative log-likelihood"], rows)]
    return Section(
        "reliability", "Reliability", text, [chart], tables, [Table(["", "confidence", "right", "decisions"], bins)]
    )


PARTS: tuple[Callable[[RunView], Section | None], ...] = (
    result,
    seeds,
    curves,
    rates,
    confusion,
    classes,
    reliability,
    lengths,
    examples,
    cost,
    recipe,
)


def of_run(run: RunView) -> list[Section]:
    """All parts that the run has data for."""
    parts = [section for part in PARTS if (section := part(run)) is not None]
    judged = [of_verdict(verdict) for verdict in read_verdicts(run.folder)]
    # After the result: what a reader should know before looking at details.
    return [*parts[:1], *judged, *parts[1:]]
