"""Charts as inline SVG: coloured by the page's CSS variables, named and described for screen readers.

Every function returns markup that is safe to insert: what comes from data is escaped. A chart never stands alone; the
page shows its numbers as a table, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hftransfer.report.svg import (
    CHARACTER,
    LINE,
    WIDTH,
    Axis,
    cut,
    draw_join,
    draw_line,
    draw_text,
    figure,
    frame,
    number,
    rectangle,
    ticks,
)
from hftransfer.report.svg import legend as draw_legend

FEW = 10
"""With fewer decisions in a bin its share is chance: it gets a dot but no line."""

INKS = (("on-dark", 0.85), ("on-middle", 0.6), ("on-light", 0.0))
"""From which shade of a cell on its text has which colour: in light and dark pages contrast turns at another one."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: For the legend.
        points: (x, y), in the order of x.
        marked: Whether its points are drawn.
        ringed: The x of a point to ring: the one that counts.
    """

    name: str
    points: Sequence[Point]
    marked: bool = False
    ringed: float | None = None


@dataclass(frozen=True)
class Spot:
    """A row of an interval chart: an estimate, its interval if it has one, and whether it is a mere yardstick."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    is_baseline: bool = False


def lines(title: str, description: str, series: Sequence[Series], x_label: str, y_label: str) -> Markup:
    """Lines over a common x, named in a legend; each has its own colour and dashes.

    Args:
        title: Name of the chart.
        description: What it shows.
        series: The lines; undefined values are left out.
        x_label: Name of the x axis.
        y_label: Name of the y axis.
    """
    kept = [(one, [(x, y) for x, y in one.points if math.isfinite(y)]) for one in series]
    every = [point for _, points in kept for point in points]
    if not every:
        return Markup("")
    xs, ys = [x for x, _ in every], [y for _, y in every]
    y_ticks = ticks(min(ys), max(ys))
    height, legend = 300, 24 if len(series) > 1 else 0
    x_axis = Axis(min(0.0, *xs), max(xs), 64, WIDTH - 16)
    y_axis = Axis(y_ticks[0], y_ticks[-1], height - 52, 34 + legend)
    parts = [
        frame(
            x_axis,
            y_axis,
            [t for t in ticks(x_axis.low, x_axis.high, 8) if t >= x_axis.low],
            y_ticks,
            (x_label, y_label),
        )
    ]
    if legend:
        parts.append(draw_legend([one.name for one in series]))
    for place, (one, points) in enumerate(kept):
        kind = place % 6 + 1
        path = " ".join(f"{x_axis(x)},{y_axis(y)}" for x, y in points)
        parts.append(Markup('<polyline class="line s{} d{}" points="{}"/>').format(kind, kind, path))
        for x, y in points if one.marked or len(points) == 1 else ():
            tip = f"{one.name}: {number(y)} at {number(x)}"
            parts.append(
                Markup('<circle class="dot s{}" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>').format(
                    kind, x_axis(x), y_axis(y), tip
                )
            )
        for x, y in points:
            if one.ringed is not None and x == one.ringed:
                parts.append(Markup('<circle class="ring" cx="{}" cy="{}" r="7"/>').format(x_axis(x), y_axis(y)))
    return figure(height, title, description, draw_join(parts))


def histogram(
    title: str,
    description: str,
    starts: Sequence[float],
    width: float,
    groups: Sequence[tuple[str, Sequence[float]]],
    labels: tuple[str, str],
    limit: float | None = None,
) -> Markup:
    """Bars side by side over ranges of equal width.

    Args:
        title: Name of the chart.
        description: What it shows.
        starts: Where each range starts.
        width: Of a range.
        groups: Name and height of every bar.
        labels: Names of both axes.
        limit: Drawn as a vertical line.
    """
    top = max((value for _, values in groups for value in values), default=0.0)
    y_ticks = ticks(0, top or 1)
    legend, height = 24 if len(groups) > 1 else 0, 260
    end = starts[-1] + width
    shows_limit = limit is not None and limit <= end
    x_axis, y_axis = Axis(starts[0], end, 64, WIDTH - 16), Axis(0, y_ticks[-1], height - 52, 34 + legend)
    parts = [frame(x_axis, y_axis, [t for t in ticks(starts[0], end, 8) if t >= starts[0]], y_ticks, labels)]
    if legend:
        parts.append(draw_legend([name for name, _ in groups], "bar"))
    slot = (x_axis(starts[0] + width) - x_axis(starts[0])) - 2
    for place, (name, values) in enumerate(groups):
        for start, value in zip(starts, values, strict=True):
            if value:
                left = x_axis(start) + 1 + place * slot / len(groups)
                tip = f"{name}, {number(start)} to {number(start + width - 1)}: {number(value)}"
                parts.append(
                    rectangle(
                        left,
                        y_axis(value),
                        slot / len(groups) - 1,
                        y_axis.start - y_axis(value),
                        f"bar s{place % 6 + 1}",
                        tip,
                    )
                )
    if shows_limit and limit is not None:
        parts.append(draw_line(x_axis(limit), y_axis.end, x_axis(limit), y_axis.start, "limit"))
        parts.append(draw_text(x_axis(limit) - 6, y_axis.end + 12, f"max_length {limit:g}", "end", "label"))
    return figure(height, title, description, draw_join(parts))


def intervals(title: str, description: str, spots: Sequence[Spot], label: str) -> Markup:
    """Estimates with their intervals, one below the other; yardsticks are hollow.

    Args:
        title: Name of the chart.
        description: What it shows.
        spots: The rows.
        label: What is measured.
    """
    spots = [spot for spot in spots if math.isfinite(spot.value)]
    if not spots:
        return Markup("")
    ends = [
        bound
        for spot in spots
        for bound in (spot.value, spot.low, spot.high)
        if bound is not None and math.isfinite(bound)
    ]
    margin = min(300.0, 16 + CHARACTER * max(len(cut(spot.name)) for spot in spots))
    x_ticks = ticks(min(ends), max(ends), 6)
    height = 56 + (LINE + 4) * len(spots)
    x_axis = Axis(x_ticks[0], x_ticks[-1], margin + 12, WIDTH - 90)
    bottom = height - 44
    parts = [draw_line(x_axis(tick), 8, x_axis(tick), bottom) for tick in x_ticks]
    parts += [draw_text(x_axis(tick), bottom + 16, number(tick), "middle") for tick in x_ticks]
    parts.append(draw_text((x_axis.start + x_axis.end) / 2, bottom + 36, label, "middle", "label"))
    for place, spot in enumerate(spots):
        y = 24 + (LINE + 4) * place
        parts.append(draw_text(margin, y + 4, cut(spot.name), "end", "label"))
        tip = f"{spot.name}: {number(spot.value)}"
        if spot.low is not None and spot.high is not None and math.isfinite(spot.low):
            parts.append(draw_line(x_axis(spot.low), y, x_axis(spot.high), y, "whisker"))
            parts += [draw_line(x_axis(end), y - 5, x_axis(end), y + 5, "whisker") for end in (spot.low, spot.high)]
            tip += f", {number(spot.low)} to {number(spot.high)}"
        kind = "hollow" if spot.is_baseline else "dot s1"
        parts.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="5"><title>{}</title></circle>').format(
                kind, x_axis(spot.value), y, tip
            )
        )
        parts.append(draw_text(WIDTH - 78, y + 4, number(spot.value), "start", "label"))
    return figure(height, title, description, draw_join(parts))


def grid(
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    labels: tuple[str, str],
) -> Markup:
    """A table of cells, the darker the larger.

    Args:
        title: Name of the chart.
        description: What it shows.
        rows: Names of the rows.
        columns: Names of the columns.
        shares: How dark each cell is, 0 to 1; None for a cell without a value.
        texts: What stands in each cell.
        labels: What rows and columns are.
    """
    margin = min(230.0, 24 + CHARACTER * max(len(cut(name, 30)) for name in rows))
    slanted = max(len(name) for name in columns) * CHARACTER > (WIDTH - margin) / len(columns)
    top = 34 + (min(110.0, 5.2 * max(len(cut(name, 22)) for name in columns)) if slanted else 16)
    cell = min(110.0, (WIDTH - margin - 16) / len(columns))
    line = min(34.0, max(20.0, cell))
    height = top + line * len(rows) + 12
    parts = [
        draw_text(margin, 14, f"{labels[1]} →", "start", "label"),
        draw_text(4, top - 8, f"{labels[0]} ↓", "start", "label"),
    ]
    for place, name in enumerate(columns):
        x = margin + cell * (place + 0.5)
        if slanted:
            parts.append(
                Markup('<text class="tick" transform="translate({} {}) rotate(-45)">{}</text>').format(
                    round(x, 1), round(top - 6), cut(name, 22)
                )
            )
        else:
            parts.append(draw_text(round(x, 1), top - 8, name, "middle"))
    for place, name in enumerate(rows):
        y = top + line * place
        parts.append(draw_text(margin - 8, round(y + line / 2 + 4, 1), cut(name, 30), "end"))
        for column, (share, text) in enumerate(zip(shares[place], texts[place], strict=True)):
            x, tip = margin + cell * column, f"{name}, {columns[column]}: {text}"
            if share is None:
                parts.append(rectangle(x + 1, y + 1, cell - 2, line - 2, "blank", tip))
            else:
                parts.append(rectangle(x + 1, y + 1, cell - 2, line - 2, "cell", tip, f"--share:{round(100 * share)}%"))
            if len(text) * CHARACTER <= cell:
                ink = next(kind for kind, from_here in INKS if (share or 0.0) >= from_here)
                middle = round(x + cell / 2, 1), round(y + line / 2 + 4, 1)
                parts.append(draw_text(*middle, text, "middle", f"tick {ink}"))
    return figure(height, title, description, draw_join(parts))


def reliability(
    title: str, description: str, groups: Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[float]]]
) -> Markup:
    """Share of right decisions against confidence; on the diagonal both are equal.

    Args:
        title: Name of the chart.
        description: What it shows.
        groups: Name, confidences, shares that are right, and counts, of the bins.
    """
    size, left = 320, 210.0
    axis, up = Axis(0, 1, left, left + size), Axis(0, 1, 64 + size, 64)
    fifths = [0, 0.2, 0.4, 0.6, 0.8, 1]
    parts = [
        frame(axis, up, fifths, fifths, ("confidence", "share that is right")),
        draw_legend([name for name, *_ in groups]),
    ]
    parts.append(draw_line(axis(0), up(0), axis(1), up(1), "limit"))
    for place, (name, confidences, right, counts) in enumerate(groups):
        kind, most = place % 6 + 1, max(counts) or 1
        bins = [one for one in zip(confidences, right, counts, strict=True) if one[2]]
        path = " ".join(f"{axis(x)},{up(y)}" for x, y, count in bins if count >= FEW)
        parts.append(Markup('<polyline class="line s{} d{}" points="{}"/>').format(kind, kind, path))
        for x, y, count in bins:
            tip = f"{name}: {number(count)} decisions of confidence {number(x)}, {number(y)} right"
            parts.append(
                Markup('<circle class="dot s{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                    kind, axis(x), up(y), round(2.5 + 6 * math.sqrt(count / most), 1), tip
                )
            )
    return figure(size + 116, title, description, draw_join(parts))
