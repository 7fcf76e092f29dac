"""What a result says about the targets: ratios, accuracies side by side, verdicts."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import Comparison
from benchmarks.stats import fit_line, ratio_spread, wilson

MIN_EXAMPLES = 2000
MIN_ROUNDS, MIN_UNDISTURBED = 3, 2
TOLERANCE = 0.10
SERIES_SPAN = (1000, 64000)
LOWER = "the accuracy is lower"

Result = dict[str, Any]


@dataclass(frozen=True)
class Accuracy:
    """A mean share of right answers and the interval of one test set."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Outcome:
    """What a comparison came to: for the table, and the verdict."""

    shown: str
    verdict: str


def whole_samples(result: Result, contestant: str) -> list[Result]:
    """The samples that did not fail."""
    return [one for one in result["samples"] if one["contestant"] == contestant and one["error"] is None]


def good_samples(result: Result, contestant: str) -> list[Result]:
    """The samples that count: undisturbed ones, or all where none is; failures never."""
    whole = whole_samples(result, contestant)
    return [one for one in whole if not one["marked"]] or whole


def accuracy_of(samples: Sequence[Result]) -> Accuracy | None:
    """The accuracy of a contestant; None where nothing was scored."""
    scored = [one for one in samples if one.get("total")]
    if not scored:
        return None
    correct, total = statistics.mean(one["correct"] for one in scored), scored[0]["total"]
    return Accuracy(correct / total, *wilson(correct, total))


def judge(result: Result, comparison: Comparison) -> Outcome:
    """The ratio of two contestants, and whether it reaches the target."""
    sides = [good_samples(result, name) for name in (comparison.numerator, comparison.denominator)]
    for name, side in zip((comparison.numerator, comparison.denominator), sides, strict=True):
        if not side:
            return Outcome("-", f"no claim: {name} {'was skipped' if name in result['skipped'] else 'failed'}")
    values = [{one["round"]: _quantity(one, comparison.quantity) for one in side} for side in sides]
    ratio = ratio_spread(*values)
    style = ".1%" if comparison.quantity == "rate" else ".2f"
    shown = f"{ratio.median:{style}} ({ratio.low:{style}} to {ratio.high:{style}})"
    accuracies = [accuracy_of(side) for side in sides]
    if None not in accuracies:
        shown += ", right " + " and ".join(
            f"{one.share:.1%} [{one.low:.1%}, {one.high:.1%}]" for one in accuracies if one
        )
    if comparison.target is None:
        return Outcome(shown, "for information")
    rounds = min(len(whole_samples(result, name)) for name in (comparison.numerator, comparison.denominator))
    reasons = _objections(result["examples"], rounds, sides, accuracies, judged=comparison.margin is not None)
    if reasons:
        return Outcome(shown, f"no claim: {', '.join(reasons)}")
    met = ratio.median <= comparison.target if comparison.at_most else ratio.median >= comparison.target
    if met and comparison.margin is not None and _lower_by(accuracies) > comparison.margin:
        return Outcome(shown, f"missed: {LOWER}")
    return Outcome(shown, "met" if met else "missed")


def _lower_by(accuracies: Sequence[Accuracy | None]) -> float:
    """How much lower the second accuracy is than the first, to a thousandth of a point; 0 where one was not scored."""
    theirs, own = accuracies
    return 0.0 if theirs is None or own is None else round(theirs.share - own.share, 5)


def _quantity(sample: Result, quantity: str) -> float:
    seconds: float = sample["seconds"]
    return seconds if quantity == "seconds" else sample["operations"] / seconds


def _objections(
    examples: int,
    rounds: int,
    sides: Sequence[Sequence[Result]],
    accuracies: Sequence[Accuracy | None],
    *,
    judged: bool,
) -> list[str]:
    """Why a ratio is no result yet; a lower accuracy is no reason where it is judged as a part of the target."""
    reasons = []
    if rounds < MIN_ROUNDS:
        reasons.append(f"fewer than {MIN_ROUNDS} rounds")
    if any(one["marked"] for side in sides for one in side):
        reasons.append("other processes were running")
    elif min(map(len, sides)) < MIN_UNDISTURBED <= rounds:
        reasons.append(f"fewer than {MIN_UNDISTURBED} undisturbed rounds")
    theirs, own = accuracies
    if theirs is not None and own is not None:
        if examples < MIN_EXAMPLES:
            reasons.append(f"fewer than {MIN_EXAMPLES:,} examples")
        if own.share < theirs.low and not judged:
            reasons.append(LOWER)
    return reasons


def judge_series(result: Result) -> tuple[Outcome, Outcome, Outcome]:
    """Time, disk and memory against the number of examples."""
    names = dict.fromkeys(one["contestant"] for one in result["samples"])
    points = [good for name in names if (good := good_samples(result, name))]
    if len(points) < 3:
        return (Outcome("-", "no claim: fewer than three sizes"),) * 3
    sizes = [float(good[0]["examples"]) for good in points]
    reasons = []
    if min(sizes) > SERIES_SPAN[0] or max(sizes) < SERIES_SPAN[1]:
        reasons.append(f"the sizes do not reach from {SERIES_SPAN[0]:,} to {SERIES_SPAN[1]:,}")
    if min(len(whole_samples(result, name)) for name in names) < MIN_ROUNDS:
        reasons.append(f"fewer than {MIN_ROUNDS} rounds")
    disturbed = any(one["marked"] for good in points for one in good)
    loaded = [*reasons, "other processes were running"] if disturbed else reasons
    outcomes = []
    for name, unit, scale in (("seconds", "s", 1e3), ("disk_bytes", "kB", 1.0)):
        values = [statistics.median(one[name] for one in good) for good in points]
        if min(values) <= 0:
            outcomes.append(Outcome("-", "no claim: nothing was measured"))
            continue
        line = fit_line(sizes, values)
        base = f"{line.intercept:.2f} s" if name == "seconds" else f"{line.intercept / 1000:,.0f} kB"
        shown = f"{base} + {line.slope * scale:.3g} {unit} per 1,000; at most {line.worst:.1%} off the line"
        outcomes.append(_limited(shown, line.worst, loaded if name == "seconds" else reasons))
    memory = [statistics.median(one["peak_rss_mib"] for one in good) for good in points]
    growth = max(memory) / min(memory) - 1
    shown = f"{min(memory):,.0f} to {max(memory):,.0f} MiB ({growth:+.1%}) from {min(sizes):,.0f} to {max(sizes):,.0f}"
    outcomes.append(_limited(shown, growth, reasons))
    return outcomes[0], outcomes[1], outcomes[2]


def _limited(shown: str, value: float, reasons: Sequence[str]) -> Outcome:
    if reasons:
        return Outcome(shown, f"no claim: {', '.join(reasons)}")
    return Outcome(shown, "met" if value <= TOLERANCE else "missed")


def without_paths(line: str) -> str:
    """A line without the folders of the machine that it was written on."""
    return re.sub(r"(?<![\w.])/(?:[^\s/'\":]+/)+", "", line)
