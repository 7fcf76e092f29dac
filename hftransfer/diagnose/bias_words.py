"""The verdict on bias in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hftransfer.diagnose import bias_tables
from hftransfer.diagnose.bias_tables import against_full
from hftransfer.diagnose.cases import SuiteReport
from hftransfer.diagnose.groups import CALIBRATION, GAPS, GroupReport, Worse
from hftransfer.report.page import brief
from hftransfer.report.statistics import Interval, holm
from hftransfer.verdicts import Verdict

if TYPE_CHECKING:
    from hftransfer.diagnose.bias import Findings, Subject
    from hftransfer.diagnose.shortcuts import Shortcut

ALPHA = 0.05
HALF_WAY, GAIN = 0.5, 0.1
"""A shortcut is a warning if it comes so much of the way to the full model, and is so much better than chance (as a
share of what there is to gain)."""
SIZE_OF_GAP = 0.05
FLIPPED = 0.02
SHOWN_NAMES, LEAST_CASES = 5, 20
FIGURES = {
    "subgroup": "the model tells positives from negatives worst among those of {}",
    "BPSN": "it takes negatives of {} most for positives of others",
    "BNSP": "it takes positives of {} most for negatives of others",
    CALIBRATION: "its probabilities mislead most for {}",
}
"""What a group suffers from whose figure of a kind is the worst."""


def verdict_of(subject: Subject, found: Findings) -> Verdict:
    """What was found, as a run keeps it."""
    alarms: list[str] = []
    remarks: list[str] = []
    for part in (_suite_words, _group_words, _flip_words, _leak_words, _artefact_words, _balance_words):
        loud, quiet = part(subject, found)
        alarms += loud
        remarks += quiet
    nothing = "Nothing was found that needs attention, among what was looked at."
    return Verdict(
        key="bias",
        title="Dataset bias and artefacts",
        words=[*(alarms or [nothing]), *remarks, *found.notes, _scope(subject, found)],
        warns=bool(alarms),
        tables=bias_tables.tables_of(found),
        charts=bias_tables.charts_of(found),
        hidden=bias_tables.hidden_tables(found),
    )


Words = tuple[list[str], list[str]]
"""What needs attention, and what else is worth saying."""


def _scope(subject: Subject, found: Findings) -> str:
    """What was looked at."""
    parts = []
    if "train" in subject.splits:
        parts.append(f"{len(subject.splits['train'].labels_N):,} training rows")
    if found.full is not None or found.groups or found.flips:
        scored = subject.scored
        assert scored is not None
        parts.append(f"the model's decisions on {len(subject.splits[scored].labels_N):,} {scored} rows")
    if subject.cases is not None:
        parts.append(f"{len(subject.cases.texts):,} cases")
    positive = ", ".join(map(repr, subject.positive))
    return f"Looked at: {', '.join(parts)}. A positive decision is {positive}. What each figure means: docs/bias.md."


def is_warning(shortcut: Shortcut, chance: float) -> bool:
    """Whether a shortcut comes so far that a model need not read the texts."""
    certain_gain = (shortcut.score.low - chance) / max(1 - chance, 1e-9)
    return shortcut.p_value <= ALPHA / 2 and shortcut.share >= HALF_WAY and certain_gain >= GAIN


def _artefact_words(subject: Subject, found: Findings) -> Words:
    alarms: list[str] = []
    remarks: list[str] = []
    given_away = [one for one in found.words if one.gives_away]
    if given_away:
        shown = "; ".join(
            f"one is in {one.texts:,} texts, {one.share:.0%} of them {one.label!r}, and in {one.covered:.0%} of that "
            "class"
            for one in given_away[:SHOWN_NAMES]
        )
        alarms.append(
            f"{_counted(len(given_away), 'word nearly decides', 'words nearly decide')} a label alone ({shown}). Is "
            "that the task, or how the data were collected? If the latter, drop the word, or collect texts of other "
            "classes with it."
        )
    if found.words:
        remarks.append(f"{len(found.words):,} words go with a label beyond chance, as those of any task do.")
    for one in against_full(found):
        chance = one.chance
        told = (
            f"A model that sees the {one.name} reaches a balanced accuracy of {brief(one.score.value)} "
            f"[{brief(one.score.low)}, {brief(one.score.high)}]; chance is {brief(chance)}, "
            f"{_reference_name(found)} {brief(_reference(found).value)}"
        )
        if is_warning(one, chance):
            alarms.append(f"{told}: {one.share:.0%} of the way without reading the text.")
        elif one.p_value <= ALPHA / 2 and one.share >= HALF_WAY / 2:
            remarks.append(f"{told}.")
    return alarms, remarks


def _reference(found: Findings) -> Interval:
    reference = found.full or found.reference
    assert reference is not None
    return reference


def _reference_name(found: Findings) -> str:
    return "the model's is" if found.full is not None else "that of all words"


def _leak_words(subject: Subject, found: Findings) -> Words:
    alarms: list[str] = []
    remarks: list[str] = []
    for leak in found.leaks:
        total = leak.exact + leak.near
        if not total:
            continue
        told = (
            f"{total:,} of {leak.count:,} {leak.split} rows ({total / leak.count:.1%}) are in the training data, too "
            f"({leak.exact:,} exactly, {leak.near:,} nearly)"
        )
        if leak.score:
            score = leak.score
            told += (
                f"; accuracy is {brief(score['all rows'].value)} with them and "
                f"{brief(score['rows that are not'].value)} without (difference {_signed(score['difference'])})"
            )
        (alarms if leak.warns else remarks).append(f"{told}.")
    return alarms, remarks


def _balance_words(subject: Subject, found: Findings) -> Words:
    remarks = []
    for column, balance in found.balance.items():
        if balance.p_value <= ALPHA and balance.association >= 0.1:
            remarks.append(
                f"In the training data label and {column} hang together (Cramer's V {balance.association:.2f}): a "
                "model can learn the one from the other. Try --task.balance groups or sample_groups."
            )
    return [], remarks


def _group_words(subject: Subject, found: Findings) -> Words:
    alarms: list[str] = []
    remarks: list[str] = []
    gaps, worse = _large_gaps(found.groups), _worse_figures(found.groups)
    for report in found.groups:
        own = _gap_words(report, gaps[report.column]) + _worse_words(report, worse[report.column])
        alarms += own
        if not own and report.gaps:
            remarks.append(
                f"By {report.column}, no rate, area under the ROC curve or calibration error differs by much more "
                "than groups drawn at random would."
            )
    for one in found.thresholds:
        remarks.append(
            f"A threshold per group of {one.column} (fitted on validation data for equal true-positive rates) changes "
            f"the gap of true positives from {brief(one.gap_before)} to {brief(one.gap_after)} and the accuracy of the "
            f"positive decision by {_signed(one.cost.interval)}. It is not part of the saved model."
        )
    return alarms, remarks


def _counted(count: int, one: str, several: str) -> str:
    """A number with the words that suit it."""
    return f"{count:,} {one if count == 1 else several}"


def _large_gaps(groups: Sequence[GroupReport]) -> dict[str, list[str]]:
    """Column -> the rates whose gaps are large, and no accident, in as many gaps as all columns have."""
    gaps = [(report, rate) for report in groups for rate in GAPS if rate in report.gaps]
    adjusted = holm([report.gaps[rate].p_value for report, rate in gaps])
    found: dict[str, list[str]] = {report.column: [] for report in groups}
    for (report, rate), p_value in zip(gaps, adjusted, strict=True):
        if p_value <= ALPHA and report.gaps[rate].interval.value >= SIZE_OF_GAP:
            found[report.column].append(rate)
    return found


def _worse_figures(groups: Sequence[GroupReport]) -> dict[str, list[Worse]]:
    """Column -> areas and calibration errors that are worse than those of all, and no accident among all of them."""
    worse = [(report.column, one) for report in groups for one in report.worse]
    # The figures that are not worse have been compared as well.
    others = sum(len(report.areas) + len(report.calibration) for report in groups) - len(worse)
    adjusted = holm([*(one.p_value for _, one in worse), *[1.0] * others])
    found: dict[str, list[Worse]] = {report.column: [] for report in groups}
    for (column, one), p_value in zip(worse, adjusted, strict=False):
        if p_value <= ALPHA:
            found[column].append(one)
    return found


def _gap_words(report: GroupReport, rates: Sequence[str]) -> list[str]:
    """The gaps of a column in these rates."""
    found = []
    for rate in rates:
        gap = report.gaps[rate]
        found.append(
            f"By {report.column}, {_rate_words(rate)} differs by {brief(gap.interval.value)} "
            f"[{brief(gap.interval.low)}, {brief(gap.interval.high)}]: most for {gap.highest!r}, least for "
            f"{gap.lowest!r} (chance alone: up to {brief(gap.chance)})."
        )
    return found


def _worse_words(report: GroupReport, worse: Sequence[Worse]) -> list[str]:
    """The worst group of each kind of figure in which one is worse than all examples together."""
    found = []
    for kind, what in FIGURES.items():
        own = [one for one in worse if one.kind == kind]
        if own:
            one = max(own, key=lambda one: abs(one.value - one.overall))
            name = "calibration error" if kind == CALIBRATION else f"{kind} AUC"
            shown = brief(one.value)
            if kind != CALIBRATION:
                interval = report.areas[kind, one.group]
                shown += f" [{brief(interval.low)}, {brief(interval.high)}]"
            found.append(
                f"By {report.column}, {what.format(f'{one.group!r}')}: {name} {shown}, {brief(one.overall)} over all."
            )
    return found


def _rate_words(rate: str) -> str:
    return {
        "accuracy": "the accuracy",
        "flagged": "the share of positive decisions, given the label,",
        "true positives": "the share of positives that is found",
        "false positives": "the share of negatives that is flagged",
    }[rate]


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _flip_words(subject: Subject, found: Findings) -> Words:
    alarms: list[str] = []
    remarks: list[str] = []
    for one in found.flips:
        told = (
            f"Another group of {one.axis.replace('_', ' ')} in the same text changes {one.flips.value:.1%} of the "
            f"decisions [{one.flips.low:.1%}, {one.flips.high:.1%}] ({one.texts:,} texts)"
        )
        if one.flips.low >= FLIPPED:
            alarms.append(f"{told}. Try --data.counterfactuals builtin.")
        elif one.texts >= 20:
            remarks.append(f"{told}.")
    return alarms, remarks


def _suite_words(subject: Subject, found: Findings) -> Words:
    suite = found.suite
    if suite is None:
        return [], []
    parts = [
        f"{share.value:.1%} of the {share.count:,} that should{'' if positive else ' not'} be flagged"
        for share, positive in ((suite.positive, True), (suite.negative, False))
        if share is not None
    ]
    told = f"Of the cases the model gets right {' and '.join(parts)}."
    failing = _failed_words(suite)
    alarms = [f"{told} {failing}"] if failing else []
    return alarms + _target_words(suite), [] if failing else [told]


def _target_words(suite: SuiteReport) -> list[str]:
    """Whom the model protects least, and whose mention it takes most for what is to be flagged."""
    found = []
    for side, told in enumerate(
        (
            "What is aimed at {low} is found least often ({least:.0%}), at {high} most often ({most:.0%}).",
            "Harmless cases about {low} are flagged most often ({wrong:.0%}), about {high} least often ({fewest:.0%}).",
        )
    ):
        shares = [(name, pair[side]) for name, pair in suite.targets.items()]
        enough = [(name, share) for name, share in shares if share is not None and share.count >= LEAST_CASES]
        if len(enough) < 2:
            continue
        enough.sort(key=lambda item: item[1].value)
        (low, least), (high, most) = enough[0], enough[-1]
        if least.high < most.low:
            values = {"least": least.value, "most": most.value, "wrong": 1 - least.value, "fewest": 1 - most.value}
            found.append(told.format(low=low, high=high, **values))
    return found


def _failed_words(suite: SuiteReport) -> str:
    """What most cases of are wrong; empty where nothing fails."""
    failed = suite.failed
    if not failed:
        sides = [share for share in (suite.positive, suite.negative) if share is not None]
        return "It gets most of one side wrong." if any(share.fails for share in sides) else ""
    names = ", ".join(f"{name} ({suite.functionalities[name, flagged].value:.0%})" for name, flagged in failed[:10])
    more = f" and {len(failed) - 10} more" if len(failed) > 10 else ""
    return (
        f"It fails {len(failed)} of {len(suite.functionalities)} functionalities, getting most of their cases wrong: "
        f"{names}{more}."
    )
