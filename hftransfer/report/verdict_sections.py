"""Verdicts as parts of a page."""

from __future__ import annotations

from markupsafe import Markup

from hftransfer.report import charts
from hftransfer.report.charts import Series, Spot
from hftransfer.report.page import Section, Table, finite
from hftransfer.verdicts import IntervalChart, LineChart, Verdict, VerdictTable


def of_verdict(verdict: Verdict) -> Section:
    """A verdict: its words, charts and tables."""
    return Section(
        f"verdict-{verdict.key}",
        verdict.title,
        " ".join(verdict.words),
        [_chart(chart) for chart in verdict.charts],
        [_table(table) for table in verdict.tables],
        [_table(table) for table in verdict.hidden],
    )


def _table(table: VerdictTable) -> Table:
    return Table(table.head, table.rows, table.caption, table.texts)


def _chart(chart: LineChart | IntervalChart) -> Markup:
    if isinstance(chart, IntervalChart):
        spots = [Spot(one.name, finite(one.value), one.low, one.high, one.is_baseline) for one in chart.estimates]
        return charts.intervals(chart.title, chart.description, spots, chart.label)
    series = [
        Series(line.name, [(x, finite(y)) for x, y in line.points], line.marked, line.ringed) for line in chart.lines
    ]
    return charts.lines(chart.title, chart.description, series, chart.x_label, chart.y_label)
