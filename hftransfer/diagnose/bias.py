"""`hftransfer diagnose bias`: artefacts of the data, and how a model treats groups, put together into a verdict.

Shape legend: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hftransfer.data.terms import Axis
from hftransfer.diagnose import bias_words
from hftransfer.diagnose.artefacts import Association, associations
from hftransfer.diagnose.cases import Cases, SuiteReport, suite_report
from hftransfer.diagnose.flips import AxisFlips, flips_of_axis
from hftransfer.diagnose.groups import Decisions, GroupReport, group_report
from hftransfer.diagnose.leaks import Leak, find_leak
from hftransfer.diagnose.shortcuts import Shortcut, recall_statistic, shortcuts
from hftransfer.diagnose.thresholds import Thresholds, available, thresholds_per_group
from hftransfer.errors import DataError
from hftransfer.report.statistics import Interval, bootstrap
from hftransfer.verdicts import Verdict

ALPHA = 0.05
"""The chance of any false alarm from words and shortcuts together; each of the two families has half of it."""
LEAST_GROUP = 20
"""Groups with fewer examples are put together."""
SMALL = "(small groups)"
MOST_GROUPS = 30

Logits = Callable[[list[list[str]]], NDArray[Any]]
"""Logits (N, C) of texts, given by input column."""


@dataclass(frozen=True)
class Rows:
    """The rows of a split.

    Attributes:
        columns: For every input column the text of each row.
        labels_N: The class of each row.
        groups: Sensitive column -> the group of each row.
    """

    columns: list[list[str]]
    labels_N: NDArray[np.int64]
    groups: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """The texts of each row as one."""
        return [" ".join(row) for row in zip(*self.columns, strict=True)]


@dataclass(frozen=True)
class Subject:
    """What is diagnosed.

    Attributes:
        names: Of the classes.
        positive: The positive ones, by name.
        splits: "train", "validation", "test", those that there are.
        seed: Of everything that is drawn.
        logits: The model; None if the data alone are diagnosed.
        axes: Identity terms.
        cases: A functional suite.
    """

    names: Sequence[str]
    positive: Sequence[str]
    splits: Mapping[str, Rows]
    seed: int = 0
    logits: Logits | None = None
    axes: Sequence[Axis] = ()
    cases: Cases | None = None

    @property
    def scored(self) -> str | None:
        """The split that is scored: test where there is one."""
        return next((name for name in ("test", "validation") if name in self.splits), None)

    @property
    def positive_codes(self) -> list[int]:
        """The numbers of the positive classes."""
        return [list(self.names).index(name) for name in self.positive]


@dataclass(frozen=True)
class Balance:
    """How a column's groups and the labels hang together in the training data.

    Attributes:
        counts: (group, class) -> rows.
        p_value: Of independence, by a chi-squared test.
        association: Cramer's V, from 0 (independent) to 1.
    """

    counts: dict[tuple[str, str], int]
    p_value: float
    association: float


@dataclass(frozen=True)
class Findings:
    """All that was found; what was not looked at is empty."""

    words: list[Association] = field(default_factory=list)
    shortcuts: list[Shortcut] = field(default_factory=list)
    reference: Interval | None = None
    full: Interval | None = None
    leaks: list[Leak] = field(default_factory=list)
    balance: dict[str, Balance] = field(default_factory=dict)
    groups: list[GroupReport] = field(default_factory=list)
    thresholds: list[Thresholds] = field(default_factory=list)
    flips: list[AxisFlips] = field(default_factory=list)
    suite: SuiteReport | None = None
    notes: list[str] = field(default_factory=list)


def diagnose(subject: Subject) -> tuple[Verdict, Findings]:
    """Look for artefacts in the data, and, where there is a model, at how it treats groups.

    Args:
        subject: Data, model and what to try on it.

    Returns:
        The verdict and the figures that it rests on.
    """
    decided = {} if subject.logits is None else _decisions(subject)
    found = Findings(
        **_of_data(subject, decided),
        **(_of_model(subject, decided) if decided else {}),
        suite=_suite(subject),
    )
    return bias_words.verdict_of(subject, found), found


def _decisions(subject: Subject) -> dict[str, tuple[Decisions, NDArray[Any]]]:
    """What the model decides about validation and test rows, and its logits."""
    assert subject.logits is not None
    found = {}
    for name in (name for name in ("validation", "test") if name in subject.splits):
        rows = subject.splits[name]
        logits_NC = subject.logits(rows.columns)
        found[name] = (Decisions.from_logits(logits_NC, rows.labels_N, subject.positive_codes), logits_NC)
    return found


def _of_data(subject: Subject, decided: Mapping[str, tuple[Decisions, NDArray[Any]]]) -> dict[str, Any]:
    train, count, scored = subject.splits.get("train"), len(subject.names), subject.scored
    if train is None:
        return {}
    found: dict[str, Any] = {}
    found["words"] = associations(train.texts, train.labels_N, subject.names, ALPHA / 2)
    found["shortcuts"], found["reference"] = shortcuts(train.columns, train.labels_N, count, seed=subject.seed)
    if scored is not None and scored in decided:
        labels_N = subject.splits[scored].labels_N
        found["full"] = bootstrap(recall_statistic(labels_N, decided[scored][1].argmax(-1), count))
    found["leaks"] = [
        find_leak(name, train.columns, rows.columns, decided[name][0].right_N if name in decided else None)
        for name, rows in subject.splits.items()
        if name != "train"
    ]
    found["balance"] = {
        column: balance_of(groups, train.labels_N, subject.names) for column, groups in train.groups.items()
    }
    return found


def balance_of(groups: Sequence[str], labels_N: NDArray[np.int64], names: Sequence[str]) -> Balance:
    """Count the classes of every group."""
    groups = joined_small(groups)
    own = list(dict.fromkeys(groups))
    table_GC = np.zeros((len(own), len(names)), np.int64)
    np.add.at(table_GC, (np.asarray([own.index(group) for group in groups]), labels_N), 1)
    counts = {(group, names[c]): int(table_GC[g, c]) for g, group in enumerate(own) for c in range(len(names))}
    present_GC = table_GC[:, table_GC.sum(0) > 0]
    if min(present_GC.shape) < 2:
        return Balance(counts, 1.0, 0.0)
    return Balance(
        counts,
        float(stats.chi2_contingency(present_GC).pvalue),
        float(stats.contingency.association(present_GC, method="cramer")),
    )


def joined_small(groups: Sequence[str]) -> list[str]:
    """The groups, those with few examples put together, and all but the most frequent ones where there are many."""
    names, counts = np.unique(np.asarray(groups, dtype=object), return_counts=True)
    kept = {names[at] for at in np.argsort(-counts, kind="stable")[:MOST_GROUPS] if counts[at] >= LEAST_GROUP}
    return [group if group in kept else SMALL for group in groups]


def _of_model(subject: Subject, decided: Mapping[str, tuple[Decisions, NDArray[Any]]]) -> dict[str, Any]:
    scored = subject.scored
    if scored is None:
        return {}
    rows, (decisions, _) = subject.splits[scored], decided[scored]
    found: dict[str, Any] = {"groups": [], "thresholds": [], "notes": []}
    for column, groups in rows.groups.items():
        found["groups"].append(group_report(column, joined_small(groups), decisions, seed=subject.seed))
        if scored != "test" or "validation" not in decided:
            found["notes"].append("Thresholds per group were not tried: they need both validation and test data.")
        elif not available():
            found["notes"].append("Thresholds per group were not tried: pip install 'hftransfer[fairlearn]'.")
        else:
            fitted = (decided["validation"][0], subject.splits["validation"].groups[column])
            try:
                found["thresholds"].append(thresholds_per_group(column, fitted, (decisions, groups), seed=subject.seed))
            except DataError as reason:
                found["notes"].append(f"Thresholds per group of {column} were not tried: {reason.what}.")
    found["notes"] = list(dict.fromkeys(found["notes"]))
    found["flips"] = _flips(subject, rows, decisions)
    return found


def _flips(subject: Subject, rows: Rows, decisions: Decisions) -> list[AxisFlips]:
    """Flips on the scored rows, and on the cases where those are single texts, too."""
    assert subject.logits is not None
    columns, flagged_N, scores_N = rows.columns, decisions.flagged_N, decisions.scores_N
    if subject.cases is not None and len(columns) == 1:
        theirs = flag(subject, [subject.cases.texts])
        columns = [columns[0] + subject.cases.texts]
        flagged_N, scores_N = np.concatenate([flagged_N, theirs[0]]), np.concatenate([scores_N, theirs[1]])
    found = []
    for axis in subject.axes:
        one = flips_of_axis(columns, axis, lambda texts: flag(subject, texts), flagged_N, scores_N, subject.seed)
        if one is not None:
            found.append(one)
    return found


def flag(subject: Subject, columns: list[list[str]]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether the model flags texts, and the probability of the positive labels."""
    assert subject.logits is not None
    unknown_N = np.full(len(columns[0]), -1)
    decisions = Decisions.from_logits(subject.logits(columns), unknown_N, subject.positive_codes)
    return decisions.flagged_N, decisions.scores_N


def _suite(subject: Subject) -> SuiteReport | None:
    if subject.cases is None or subject.logits is None:
        return None
    return suite_report(subject.cases, flag(subject, [subject.cases.texts])[0])
