"""Functional suites: cases with a known answer, each for one ability.

A suite is a csv or other data file with the columns text and label, and, where there are, functionality and target.
HateCheck (Roettger et al. 2021, arXiv:2012.15606) is one; its file, as published, has other names for these columns,
which are read as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hftransfer.data.load import load_file
from hftransfer.data.named import check_present
from hftransfer.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

TEXT, LABEL, FUNCTIONALITY, TARGET = "text", "label", "functionality", "target"
HATECHECK = {TEXT: "test_case", LABEL: "label_gold", TARGET: "target_ident"}
"""What the published HateCheck calls these columns."""
HATEFUL = "hateful"
"""Its label of the cases that should be flagged; the others are "non-hateful"."""
FAILS_BELOW = 0.5
"""A functionality with less than this share right, for certain, is failed."""


@dataclass(frozen=True)
class Cases:
    """A suite.

    Attributes:
        texts: The cases.
        positive_N: Whether each should be flagged.
        functionality: What each tests; empty without such a column.
        target: Whom each is about, "" for nobody; empty without such a column.
    """

    texts: list[str]
    positive_N: NDArray[np.bool_]
    functionality: list[str]
    target: list[str]


@dataclass(frozen=True)
class Share:
    """A share of right decisions with its interval (Wilson 1927)."""

    right: int
    count: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Right ones of all."""
        return self.right / self.count

    @property
    def fails(self) -> bool:
        """Whether most are wrong for certain."""
        return self.high < FAILS_BELOW


@dataclass(frozen=True)
class SuiteReport:
    """How a model does on a suite.

    Attributes:
        positive: Cases that should be flagged.
        negative: Cases that should not.
        functionalities: (name, should be flagged) -> share right.
        targets: Name -> share right of the cases to be flagged, and of the others; None where there are none.
    """

    positive: Share | None
    negative: Share | None
    functionalities: dict[tuple[str, bool], Share] = field(default_factory=dict)
    targets: dict[str, tuple[Share | None, Share | None]] = field(default_factory=dict)

    @property
    def failed(self) -> list[tuple[str, bool]]:
        """The functionalities that fail, the worst first."""
        return sorted(
            (name for name, share in self.functionalities.items() if share.fails),
            key=lambda name: self.functionalities[name].value,
        )


def load_cases(path: str, positive: Sequence[str], positive_case: str | None, *, where: str = "--cases") -> Cases:
    """Read a suite.

    Args:
        path: The file.
        positive: The model's positive labels.
        positive_case: The cases' label that should be flagged; needed where they have other labels than the model, and
            are not HateCheck's as published.
        where: What the path was given as.

    Raises:
        DataError: It cannot be read, lacks a column, or it cannot be told which cases should be flagged.
    """
    dataset = load_file(path, where=where)
    place = f"{where} ({path})"
    text, label = _column(dataset, TEXT), _column(dataset, LABEL)
    check_present(dataset.column_names, (text, label), place)
    texts, labels = dataset[text][:], [str(value) for value in dataset[label][:]]
    blank = next((row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()), None)
    if blank is not None or not texts:
        raise DataError("no text" if texts else "no cases", where=f"{place}, row {(blank or 0) + 1}", fix="remove it")
    wanted = {positive_case} if positive_case is not None else set(positive)
    if positive_case is None and label == HATECHECK[LABEL] and not wanted & set(labels):
        wanted = {HATEFUL}
    if not wanted & set(labels):
        shown = ", ".join(map(repr, sorted(set(labels))[:5]))
        raise DataError(
            f"no case has the label {', '.join(map(repr, sorted(wanted)))}; there are {shown}",
            where=place,
            fix="name the one that should be flagged with --positive_case",
        )
    return Cases(
        texts,
        np.asarray([value in wanted for value in labels]),
        _named(dataset, FUNCTIONALITY),
        _named(dataset, TARGET),
    )


def _column(dataset: Dataset, name: str) -> str:
    """The column's name in this file: our own, or else HateCheck's."""
    other = HATECHECK.get(name, name)
    return other if name not in dataset.column_names and other in dataset.column_names else name


def _named(dataset: Dataset, name: str) -> list[str]:
    column = _column(dataset, name)
    if column not in dataset.column_names:
        return []
    return ["" if value is None or value in ("", "nan") else str(value) for value in dataset[column][:]]


def suite_report(cases: Cases, flagged_N: NDArray[np.bool_]) -> SuiteReport:
    """Score a suite.

    Args:
        cases: The suite.
        flagged_N: Which cases the model flags.
    """
    right_N = flagged_N == cases.positive_N
    functionalities, targets = {}, {}
    for name in dict.fromkeys(cases.functionality):
        own_N = np.asarray([one == name for one in cases.functionality])
        for positive in (True, False):
            share = share_of(right_N[own_N & (cases.positive_N == positive)])
            if share is not None:
                functionalities[name, positive] = share
    for name in (name for name in dict.fromkeys(cases.target) if name):
        own_N = np.asarray([one == name for one in cases.target])
        targets[name] = (share_of(right_N[own_N & cases.positive_N]), share_of(right_N[own_N & ~cases.positive_N]))
    return SuiteReport(
        share_of(right_N[cases.positive_N]), share_of(right_N[~cases.positive_N]), functionalities, targets
    )


def share_of(right_N: NDArray[np.bool_]) -> Share | None:
    """The share of right ones; None of nothing."""
    count, right = len(right_N), int(right_N.sum())
    if not count:
        return None
    interval = stats.binomtest(right, count).proportion_ci(method="wilson")
    return Share(right, count, float(interval.low), float(interval.high))
