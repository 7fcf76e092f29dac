"""The verdict on bias in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hftransfer.diagnose import bias_tables
from hftransfer.diagnose.bias_tables import against_full
from hftransfer.diagnose.cases import SuiteReport
from hftransfer.diagnose.groups import GAPS, GroupReport
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
SHOWN_NAMES = 5


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
            f"word {place} of the table: {one.share:.0%} of its {one.texts:,} texts are {one.label!r}, and it is in "
            f"{one.covered:.0%} of that class"
            for place, one in enumerate(given_away[:SHOWN_NAMES], 1)
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
    for report in found.groups:
        own = _gap_words(report)
        alarms += own
        if not own and report.gaps:
            remarks.append(f"By {report.column}, no rate differs by much more than groups drawn at random would.")
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


def _gap_words(report: GroupReport) -> list[str]:
    """The gaps of a column that are large, and no accident."""
    ordered = sorted(report.gaps, key=lambda rate: report.gaps[rate].p_value)
    adjusted = dict(zip(ordered, holm([report.gaps[rate].p_value for rate in ordered]), strict=True))
    found = []
    for rate in (rate for rate in GAPS if rate in report.gaps):
        gap = report.gaps[rate]
        if adjusted[rate] <= ALPHA and gap.interval.value >= SIZE_OF_GAP:
            found.append(
                f"By {report.column}, {_rate_words(rate)} differs by {brief(gap.interval.value)} "
                f"[{brief(gap.interval.low)}, {brief(gap.interval.high)}]: most for {gap.highest!r}, least for "
                f"{gap.lowest!r} (chance alone: up to {brief(gap.chance)})."
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
    worst = [
        (name, shares[0]) for name, shares in suite.targets.items() if shares[0] is not None and shares[0].count >= 20
    ]
    if len(worst) > 1:
        worst.sort(key=lambda item: item[1].value)
        (low, least), (high, most) = worst[0], worst[-1]
        if least.high < most.low:
            alarms.append(
                f"What is aimed at {low} is found least often ({least.value:.0%}), at {high} most often "
                f"({most.value:.0%})."
            )
    return alarms, [] if failing else [told]


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
