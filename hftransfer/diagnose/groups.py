"""How a classifier treats groups: rates and gaps, areas under curves, calibration.

A decision is positive or not ("hate" or not), whatever the number of classes. The rates are those of fairlearn's
MetricFrame, written as sums over examples so that thousands of resamples cost a matrix product.

Shape legend: N examples, G groups, S sums, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import softmax

from hftransfer.report.statistics import Floats, Interval, Statistic, bootstrap, bootstrap_all
from hftransfer.tasks.reliability import BINS

RATES = ("accuracy", "base rate", "flagged", "true positives", "false positives")
"""Per group: the share of right labels, of positive examples, of positive decisions; and the share of positive
decisions among positive and among negative examples."""
GAPS = ("accuracy", "flagged", "true positives", "false positives")
PARTS = 6
MIN_EXAMPLES = 10
"""A rate over fewer examples is not compared."""
PERMUTATIONS, AREA_RESAMPLES, CALIBRATION_DRAWS = 999, 300, 200
AREAS, CALIBRATION = ("subgroup", "BPSN", "BNSP"), "calibration"
CLEARLY = 0.05
"""A group's area or calibration error that is nearer to that of all examples is not worse than theirs."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Decisions:
    """What a model decided about the examples of a split.

    Attributes:
        right_N: Whether the predicted label is the right one.
        positive_N: Whether the right label is a positive one.
        flagged_N: Whether the predicted label is.
        scores_N: The probability of the positive labels together.
        confident_N: The probability of the predicted label.
    """

    right_N: Bools
    positive_N: Bools
    flagged_N: Bools
    scores_N: Floats
    confident_N: Floats

    @classmethod
    def from_logits(cls, logits_NC: NDArray[Any], labels_N: NDArray[Any], positive: Sequence[int]) -> Decisions:
        """Decisions by the most probable class.

        Args:
            logits_NC: Of the classes.
            labels_N: The right class.
            positive: The numbers of the positive classes.
        """
        probabilities_NC = softmax(np.asarray(logits_NC, np.float64), axis=-1)
        predicted_N = probabilities_NC.argmax(-1)
        return cls(
            predicted_N == labels_N,
            np.isin(labels_N, positive),
            np.isin(predicted_N, positive),
            probabilities_NC[:, list(positive)].sum(1),
            probabilities_NC.max(1),
        )

    def select(self, rows_N: NDArray[Any]) -> Decisions:
        """Those of some examples."""
        parts = (self.right_N, self.positive_N, self.flagged_N, self.scores_N, self.confident_N)
        return Decisions(*(part[rows_N] for part in parts))


@dataclass(frozen=True)
class Gap:
    """The largest difference of a rate between two groups.

    Attributes:
        interval: With its bootstrap interval; a maximum is too large on average, so look at `chance`, too.
        p_value: How often groups drawn at random, among examples of one label, differ as much.
        chance: The 95th percentile of the gaps of such groups.
        highest: The group with the highest rate.
        lowest: That with the lowest.
    """

    interval: Interval
    p_value: float
    chance: float
    highest: str
    lowest: str


@dataclass(frozen=True)
class Worse:
    """An area or calibration error of a group that is worse than that of all examples.

    Attributes:
        kind: One of `AREAS`, or `CALIBRATION`.
        group: Whose.
        value: Of the group.
        overall: Of all examples.
        p_value: How often a group drawn at random, with as many examples of each label, is as bad.
    """

    kind: str
    group: str
    value: float
    overall: float
    p_value: float


@dataclass(frozen=True)
class GroupReport:
    """One column of groups.

    Attributes:
        column: Its name.
        counts: Group -> examples, the most frequent first.
        rates: (rate, group) -> its interval.
        gaps: Rate -> gap; none where fewer than two groups have enough examples.
        areas: (kind, group) -> area under the ROC curve: "subgroup", "BPSN", "BNSP" (Borkan et al. 2019,
            arXiv:1903.04561).
        calibration: Group -> expected calibration error, and the 95th percentile of what it would be at this size
            if the probabilities were right.
        worse: Areas and calibration errors that are worse than those of all examples.
    """

    column: str
    counts: dict[str, int]
    rates: dict[tuple[str, str], Interval]
    gaps: dict[str, Gap]
    areas: dict[tuple[str, str], Interval] = field(default_factory=dict)
    calibration: dict[str, tuple[float, float]] = field(default_factory=dict)
    worse: list[Worse] = field(default_factory=list)


def group_report(column: str, groups: Sequence[str], decisions: Decisions, *, seed: int = 0) -> GroupReport:
    """Compare the groups of a column.

    Args:
        column: Its name.
        groups: The group of each example.
        decisions: What the model decided.
        seed: Of resamples and permutations.
    """
    names, codes_N, counts_G = np.unique(np.asarray(groups, dtype=object), return_inverse=True, return_counts=True)
    order = np.argsort(-counts_G, kind="stable")
    names, counts_G, codes_N = names[order].tolist(), counts_G[order], np.argsort(order)[codes_N]
    sums_NS = group_sums(codes_N, len(names), decisions)
    found = bootstrap_all(sums_NS, partial(_named, names=names), seed=seed)
    rates = {(rate, name): found[f"{rate}/{name}"] for rate in RATES for name in names}
    nulls = _permuted_gaps(codes_N, len(names), decisions, seed)
    gaps = {}
    rates_1G = rates_of(sums_NS.sum(0)[None], len(names))
    for rate in GAPS:
        values_G, interval = rates_1G[rate][0], found[f"gap/{rate}"]
        if np.isfinite(values_G).sum() < 2:
            continue
        null_R = nulls[rate][np.isfinite(nulls[rate])]
        p_value = float((1 + (null_R >= interval.value - 1e-12).sum()) / (1 + len(null_R)))
        chance = float(np.quantile(null_R, 0.95)) if len(null_R) else math.nan
        high, low = names[int(np.nanargmax(values_G))], names[int(np.nanargmin(values_G))]
        gaps[rate] = Gap(interval, p_value, chance, high, low)
    areas = areas_under_curves(codes_N, names, decisions, seed)
    calibration = {name: calibration_error(decisions.select(codes_N == at), seed) for at, name in enumerate(names)}
    figures = {key: interval.value for key, interval in areas.items()}
    figures |= {(CALIBRATION, name): error for name, (error, _) in calibration.items()}
    return GroupReport(
        column,
        dict(zip(names, counts_G.tolist(), strict=True)),
        rates,
        gaps,
        areas,
        calibration,
        worse_than_all(codes_N, names, decisions, figures, seed),
    )


def group_sums(codes_N: NDArray[np.int64], num_groups: int, decisions: Decisions) -> Floats:
    """What each example adds to the counts of its group, (N, 6 * G)."""
    positive_N, flagged_N = decisions.positive_N, decisions.flagged_N
    parts_NP = np.stack(
        [
            np.ones(len(codes_N)),
            decisions.right_N,
            positive_N,
            flagged_N,
            positive_N & flagged_N,
            ~positive_N & flagged_N,
        ],
        1,
    ).astype(np.float64)
    member_NG = codes_N[:, None] == np.arange(num_groups)
    found: Floats = (member_NG[:, :, None] * parts_NP[:, None, :]).reshape(len(codes_N), -1)
    return found


def rates_of(sums_RS: Floats, num_groups: int, least: int = MIN_EXAMPLES) -> dict[str, Floats]:
    """The rates of every group from sums, (R, G) each; NaN over fewer than `least` examples."""
    count, right, positive, flagged, hits, alarms = np.moveaxis(sums_RS.reshape(-1, num_groups, PARTS), 2, 0)

    def share(above: Floats, below: Floats) -> Floats:
        found: Floats = np.divide(above, below, out=np.full(below.shape, np.nan), where=below >= least)
        return found

    return {
        "accuracy": share(right, count),
        "base rate": share(positive, count),
        "flagged": share(flagged, count),
        "true positives": share(hits, positive),
        "false positives": share(alarms, count - positive),
    }


def _named(sums_RS: Floats, names: Sequence[str]) -> dict[str, Floats]:
    """Rates of every group, and gaps, by name."""
    # Of resamples small groups count, too: their interval is wide, not absent.
    rates = rates_of(sums_RS, len(names), least=1)
    found = {f"{rate}/{name}": rates[rate][:, at] for rate in RATES for at, name in enumerate(names)}
    compared = rates_of(sums_RS, len(names))
    return found | {f"gap/{rate}": gap_of(compared[rate]) for rate in GAPS}


def gap_of(rates_RG: Floats) -> Floats:
    """The largest rate minus the smallest, (R,); NaN where fewer than two are defined."""
    known_RG = np.isfinite(rates_RG)
    high_R = np.where(known_RG, rates_RG, -np.inf).max(1)
    low_R = np.where(known_RG, rates_RG, np.inf).min(1)
    found: Floats = np.where(known_RG.sum(1) >= 2, high_R - low_R, np.nan)
    return found


def _permuted_gaps(codes_N: NDArray[np.int64], num_groups: int, decisions: Decisions, seed: int) -> dict[str, Floats]:
    """Gaps where groups are dealt out anew among the examples of one label, (R,) by rate.

    Under this null hypothesis decisions are independent of the group given the label (equalised odds).
    """
    rng = np.random.default_rng(seed)
    kinds_N = decisions.right_N + 2 * decisions.flagged_N + 4 * decisions.positive_N
    sums_RS = np.zeros((PERMUTATIONS, num_groups * PARTS))
    for positive in (False, True):
        rows = np.flatnonzero(decisions.positive_N == positive)
        if not len(rows):
            continue
        # How many of each kind of example a group of this size gets: a multivariate hypergeometric draw, group by
        # group, which is what a permutation comes to.
        kinds, left = np.unique(kinds_N[rows], return_counts=True)
        left_RK = np.tile(left, (PERMUTATIONS, 1))
        for group, size in enumerate(np.bincount(codes_N[rows], minlength=num_groups).tolist()):
            drawn_RK = np.stack([rng.multivariate_hypergeometric(left_K, size) for left_K in left_RK])
            left_RK = left_RK - drawn_RK
            for place, kind in enumerate(kinds.tolist()):
                right, flagged = kind & 1, kind >> 1 & 1
                parts = np.array([1, right, positive, flagged, positive and flagged, not positive and flagged], float)
                sums_RS[:, group * PARTS : (group + 1) * PARTS] += drawn_RK[:, place, None] * parts
    return {rate: gap_of(values) for rate, values in rates_of(sums_RS, num_groups).items() if rate in GAPS}


def areas_under_curves(
    codes_N: NDArray[np.int64], names: Sequence[str], decisions: Decisions, seed: int = 0
) -> dict[tuple[str, str], Interval]:
    """Areas under ROC curves of each group (Borkan et al. 2019, section 3.2).

    "subgroup": positive against negative examples of the group. "BPSN": positive ones of the background (all others)
    against negative ones of the group; low where the group is flagged too often. "BNSP": negative ones of the
    background against positive ones of the group; low where the group's positives are missed.
    """
    positive_N, found = decisions.positive_N, {}
    for at, name in enumerate(names):
        for kind in AREAS:
            rows_N = _rows_of_area(kind, codes_N == at, positive_N)
            labels, scores = positive_N[rows_N], decisions.scores_N[rows_N]
            if min(labels.sum(), (~labels).sum()) >= MIN_EXAMPLES:
                statistic = Statistic(len(labels), of_rows=partial(_area, labels, scores))
                found[kind, name] = bootstrap(statistic, resamples=AREA_RESAMPLES, seed=seed)
    return found


def _rows_of_area(kind: str, own_N: Bools, positive_N: Bools) -> Bools:
    """Whose scores an area of a group compares."""
    if kind == "subgroup":
        return own_N
    return own_N ^ positive_N if kind == "BPSN" else own_N == positive_N


def worse_than_all(
    codes_N: NDArray[np.int64],
    names: Sequence[str],
    decisions: Decisions,
    figures: dict[tuple[str, str], float],
    seed: int = 0,
) -> list[Worse]:
    """The figures that are worse than those of all examples, with how rare that is among groups drawn at random.

    Of a group that is drawn at random among the examples of each label all areas are on average that of all examples.

    Args:
        codes_N: The group of each example.
        names: Of the groups.
        decisions: What the model decided.
        figures: (kind, group) -> area or calibration error.
        seed: Of what is drawn.
    """
    every_N, found = np.ones(len(codes_N), bool), []
    whole = {kind: _figure(kind, every_N, decisions) for kind in ("subgroup", CALIBRATION)}
    for number, ((kind, group), value) in enumerate(figures.items()):
        overall, sign = (whole[kind], 1) if kind == CALIBRATION else (whole["subgroup"], -1)
        if sign * (value - overall) < CLEARLY:
            continue
        rng, as_bad = np.random.default_rng((seed, number)), 0
        own_N = codes_N == names.index(group)
        for _ in range(PERMUTATIONS):
            drawn_N = _drawn_group(own_N, decisions.positive_N, rng)
            as_bad += sign * (_figure(kind, drawn_N, decisions) - value) >= -1e-12
        found.append(Worse(kind, group, value, overall, (1 + as_bad) / (1 + PERMUTATIONS)))
    return found


def _drawn_group(own_N: Bools, positive_N: Bools, rng: np.random.Generator) -> Bools:
    """A group drawn at random that has as many examples of each label as this one."""
    drawn_N = np.zeros(len(own_N), bool)
    for rows in (np.flatnonzero(positive_N), np.flatnonzero(~positive_N)):
        drawn_N[rng.choice(rows, int(own_N[rows].sum()), replace=False)] = True
    return drawn_N


def _figure(kind: str, own_N: Bools, decisions: Decisions) -> float:
    """An area or the calibration error of a group."""
    if kind == CALIBRATION:
        return _binned_error(*_binned(decisions.confident_N[own_N]), decisions.right_N[own_N].astype(np.float64))
    rows = np.flatnonzero(_rows_of_area(kind, own_N, decisions.positive_N))
    return _area(decisions.positive_N, decisions.scores_N, rows)


def _area(labels: Bools, scores: Floats, rows: NDArray[np.int64]) -> float:
    """The area under the ROC curve of these examples (Mann and Whitney): NaN where a label is absent."""
    labels, ranks = labels[rows], stats.rankdata(scores[rows])
    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return math.nan
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def calibration_error(decisions: Decisions, seed: int = 0) -> tuple[float, float]:
    """The expected calibration error of the predicted labels, and how large chance alone makes it at this size."""
    place_N, confident_N = _binned(decisions.confident_N)
    found = _binned_error(place_N, confident_N, decisions.right_N.astype(np.float64))
    rng = np.random.default_rng(seed)
    drawn = [
        _binned_error(place_N, confident_N, (rng.random(len(confident_N)) < confident_N).astype(np.float64))
        for _ in range(CALIBRATION_DRAWS)
    ]
    return found, float(np.quantile(drawn, 0.95))


def _binned(confident_N: Floats) -> tuple[NDArray[np.int64], Floats]:
    """The bin of each confidence, and the confidences without 0 and 1."""
    confident_N = np.clip(confident_N, 1e-9, 1 - 1e-9)
    return np.minimum((confident_N * BINS).astype(int), BINS - 1), confident_N


def _binned_error(place_N: NDArray[np.int64], confident_N: Floats, right_N: Floats) -> float:
    """As `tasks.reliability`, from confidences."""
    gaps = np.bincount(place_N, right_N - confident_N, BINS)
    return float(np.abs(gaps).sum() / len(place_N))
