"""The tables and charts of the verdict on bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hftransfer.diagnose.cases import Share
from hftransfer.diagnose.flips import AxisFlips
from hftransfer.diagnose.groups import RATES, GroupReport
from hftransfer.diagnose.shortcuts import Shortcut, share_of_way
from hftransfer.report.page import brief, with_interval
from hftransfer.report.statistics import Interval
from hftransfer.verdicts import Estimate, IntervalChart, VerdictTable

if TYPE_CHECKING:
    from hftransfer.diagnose.bias import Findings

SHOWN_WORDS = 20
WORDS = "Words that go with a label"


def against_full(found: Findings) -> list[Shortcut]:
    """The shortcuts, measured by the full model where there is one."""
    if found.full is None:
        return found.shortcuts
    full = found.full.value
    return [replace(one, share=share_of_way(one.score.value, one.chance, full)) for one in found.shortcuts]


def tables_of(found: Findings) -> list[VerdictTable]:
    """What is in sight."""
    return [*suite_tables(found), *group_tables(found), *flip_tables(found), *data_tables(found)]


def suite_tables(found: Findings) -> list[VerdictTable]:
    """The suite by functionality and by target."""
    suite = found.suite
    if suite is None:
        return []
    tables = []
    if suite.functionalities:
        ordered = sorted(suite.functionalities.items(), key=lambda item: item[1].value)
        rows = [
            [name, "yes" if positive else "no", f"{share.count:,}", _share(share), "fails" if share.fails else ""]
            for (name, positive), share in ordered
        ]
        head = ["functionality", "to be flagged", "cases", "right", ""]
        tables.append(VerdictTable(caption="Cases by functionality, the worst first", head=head, rows=rows, texts=2))
    if suite.targets:
        rows = [[name, _share(shares[0]), _share(shares[1])] for name, shares in suite.targets.items()]
        head = ["aimed at", "right, to be flagged", "right, not to be flagged"]
        tables.append(VerdictTable(caption="Cases by target", head=head, rows=rows))
    return tables


def _share(share: Share | None) -> str:
    return "-" if share is None else f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}] of {share.count:,}"


def group_tables(found: Findings) -> list[VerdictTable]:
    """The rates of every column's groups."""
    return [_rates_table(report) for report in found.groups]


def _rates_table(report: GroupReport) -> VerdictTable:
    rows = [
        [group, f"{count:,}", *(_interval(report.rates[rate, group]) for rate in RATES)]
        for group, count in report.counts.items()
    ]
    for name, value in (("gap", "value"), ("gap by chance, 95 %", "chance"), ("p", "p_value")):
        cells = [
            ""
            if rate not in report.gaps
            else brief(getattr(report.gaps[rate], value))
            if value != "value"
            else _interval(report.gaps[rate].interval)
            for rate in RATES
        ]
        rows.append([name, "", *cells])
    return VerdictTable(caption=f"Rates by {report.column}", head=[report.column, "examples", *RATES], rows=rows)


def _interval(interval: Interval) -> str:
    return with_interval(interval.value, (interval.low, interval.high))


def flip_tables(found: Findings) -> list[VerdictTable]:
    """What exchanging groups does, by axis."""
    if not found.flips:
        return []
    rows = [
        [one.axis, f"{one.texts:,}", f"{one.counterfactuals:,}", _interval(one.flips), _interval(one.change)]
        for one in found.flips
    ]
    head = ["axis", "texts", "counterfactuals", "decisions changed", "mean change of the probability"]
    return [VerdictTable(caption="Another group in the same text", head=head, rows=rows)]


def data_tables(found: Findings) -> list[VerdictTable]:
    """Shortcut models, and scores without copies."""
    tables = []
    if found.shortcuts:
        rows = [
            [one.name, _interval(one.score), brief(one.chance), brief(one.p_value), f"{one.share:.0%}"]
            for one in against_full(found)
        ]
        assert found.reference is not None
        rows.append(["all words", _interval(found.reference), "", "", ""])
        if found.full is not None:
            rows.append(["the model", _interval(found.full), "", "", "100%"])
        head = ["what is seen", "balanced accuracy", "chance", "p", "of the way"]
        tables.append(VerdictTable(caption="Models that see one thing alone", head=head, rows=rows))
    for leak in found.leaks:
        if leak.score:
            rows = [[name, _interval(interval)] for name, interval in leak.score.items()]
            caption = f"Accuracy on {leak.split} rows with and without copies of training rows"
            tables.append(VerdictTable(caption=caption, head=["rows", "accuracy"], rows=rows))
    return tables


def hidden_tables(found: Findings) -> list[VerdictTable]:
    """What is to be opened: words, counts, areas, pairs of groups."""
    tables = []
    if found.words:
        rows = [
            [
                one.word,
                one.label,
                f"{one.texts:,}",
                *(f"{value:.3f}" for value in (one.share, one.expected, one.covered)),
                f"{one.z:.1f}",
                f"{one.p_value:.1e}",
            ]
            for one in found.words[:SHOWN_WORDS]
        ]
        head = ["word", "label", "texts", "share of label", "expected", "of the label's texts", "z", "p (Holm)"]
        tables.append(VerdictTable(caption=WORDS, head=head, rows=rows, texts=2))
    for column, balance in found.balance.items():
        labels = list(dict.fromkeys(label for _, label in balance.counts))
        rows = [
            [group, *(f"{balance.counts[group, label]:,}" for label in labels)]
            for group in dict.fromkeys(group for group, _ in balance.counts)
        ]
        tables.append(VerdictTable(caption=f"Training rows by {column} and label", head=[column, *labels], rows=rows))
    for report in found.groups:
        rows = [[group, *_areas(report, group), *_calibration(report, group)] for group in report.counts]
        head = [report.column, "subgroup AUC", "BPSN AUC", "BNSP AUC", "calibration error", "by chance, 95 %"]
        caption = f"Areas under ROC curves and calibration by {report.column}"
        tables.append(VerdictTable(caption=caption, head=head, rows=rows))
    tables += [_pairs_table(one) for one in found.flips]
    return tables


def _areas(report: GroupReport, group: str) -> list[str]:
    kinds = ("subgroup", "BPSN", "BNSP")
    return [_interval(report.areas[kind, group]) if (kind, group) in report.areas else "-" for kind in kinds]


def _calibration(report: GroupReport, group: str) -> list[str]:
    error, chance = report.calibration[group]
    return [brief(error), brief(chance)]


def _pairs_table(one: AxisFlips) -> VerdictTable:
    rows = [
        [named, put, f"{count:,}", f"{flipped:.1%}", f"{moved:+.3f}"]
        for (named, put), (count, flipped, moved) in sorted(one.pairs.items(), key=lambda item: -abs(item[1][2]))
    ]
    head = ["named", "put in its place", "counterfactuals", "decisions changed", "mean change of the probability"]
    return VerdictTable(caption=f"Exchanges of {one.axis}", head=head, rows=rows, texts=2)


def charts_of(found: Findings) -> list[IntervalChart]:
    """Functionalities, and rates by group."""
    charts = []
    if found.suite is not None and found.suite.functionalities:
        ordered = sorted(found.suite.functionalities.items(), key=lambda item: item[1].value)
        estimates = [
            Estimate(
                name=f"{name} ({'flag' if positive else 'pass'})", value=share.value, low=share.low, high=share.high
            )
            for (name, positive), share in ordered
        ]
        charts.append(
            IntervalChart(
                title="Cases by functionality",
                description="Share of right decisions with 95 % intervals.",
                estimates=estimates,
                label="share right",
            )
        )
    for report in found.groups:
        charts += _rate_charts(report, ("true positives", "false positives"))
    return charts


def _rate_charts(report: GroupReport, rates: Sequence[str]) -> list[IntervalChart]:
    found = []
    for rate in rates:
        intervals = [(group, report.rates[rate, group]) for group in report.counts]
        estimates = [
            Estimate(name=group, value=one.value, low=one.low, high=one.high)
            for group, one in intervals
            if one.value == one.value
        ]
        if len(estimates) > 1:
            found.append(
                IntervalChart(
                    title=f"{rate.capitalize()} by {report.column}",
                    description="Rates with 95 % intervals.",
                    estimates=estimates,
                    label=rate,
                )
            )
    return found
