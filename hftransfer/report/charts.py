"""Charts as inline SVG: coloured by the page's CSS variables, named and described for screen readers.

Every function returns markup that is safe to insert: what comes from data is escaped. A chart never stands alone; the
page shows its numbers as a table, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, LINE, CHARACTER = 720, 22, 6.6
"""Width of a chart, height of a row and width of a character, in the units of its view box."""

NONE = "\N{EN DASH}"
"""What stands for a number that there is not."""

FEW = 10
"""With fewer decisions in a bin its share is chance: it gets a dot but no line."""

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


@dataclass(frozen=True)
class Axis:
    """Turns values into places.

    Attributes:
        low: The lowest value.
        high: The highest.
        start: Where the lowest stands.
        end: Where the highest stands.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value stands."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover a range, about so many."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough - 1e-12 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def number(value: float | None) -> str:
    """A number as short as it can be told; a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000:
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    return f"{value:.4g}"


def figure(height: float, title: str, description: str, body: Markup) -> Markup:
    """A chart with its name and description."""
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" preserveAspectRatio="xMidYMid meet">'
        "<title>{}</title><desc>{}</desc>{}</svg>"
    ).format(WIDTH, round(height), title, description, body)


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, x1, y1, x2, y2)


def _rectangle(x: float, y: float, width: float, height: float, kind: str, tip: str = "", style: str = "") -> Markup:
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2"{}>{}</rect>').format(
        kind,
        round(x, 1),
        round(y, 1),
        round(max(width, 0), 1),
        round(max(height, 0), 1),
        Markup(' style="{}"').format(style) if style else "",
        Markup("<title>{}</title>").format(tip) if tip else "",
    )


def _join(parts: Sequence[Markup]) -> Markup:
    return Markup("").join(parts)


def _frame(
    x_axis: Axis, y_axis: Axis, x_ticks: Sequence[float], y_ticks: Sequence[float], labels: tuple[str, str]
) -> Markup:
    """Grid, ticks and the names of both axes."""
    bottom, left = y_axis.start, x_axis.start
    parts = [_line(left, y_axis(tick), x_axis.end, y_axis(tick)) for tick in y_ticks]
    parts += [_text(left - 8, y_axis(tick) + 4, number(tick), "end") for tick in y_ticks]
    parts += [_text(x_axis(tick), bottom + 18, number(tick), "middle") for tick in x_ticks if tick <= x_axis.high]
    parts += [_line(left, bottom, x_axis.end, bottom, "axis")]
    parts += [_text((left + x_axis.end) / 2, bottom + 38, labels[0], "middle", "label")]
    parts += [_text(left - 44, y_axis.end - 14, labels[1], "start", "label")]
    return _join(parts)


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
        _frame(
            x_axis,
            y_axis,
            [t for t in ticks(x_axis.low, x_axis.high, 8) if t >= x_axis.low],
            y_ticks,
            (x_label, y_label),
        )
    ]
    if legend:
        parts.append(_legend([one.name for one in series]))
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
    return figure(height, title, description, _join(parts))


def _legend(names: Sequence[str], kind: str = "line") -> Markup:
    parts, x = [], 64.0
    for place, name in enumerate(names):
        number_of = place % 6 + 1
        if kind == "line":
            parts.append(
                Markup('<line class="line s{} d{}" x1="{}" y1="14" x2="{}" y2="14"/>').format(
                    number_of, number_of, round(x, 1), round(x + 22, 1)
                )
            )
        else:
            parts.append(_rectangle(x + 6, 8, 12, 12, f"bar s{number_of}"))
        parts.append(_text(round(x + 28, 1), 18, name, "start", "label"))
        x += 28 + CHARACTER * len(name) + 22
    return _join(parts)


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
    parts = [_frame(x_axis, y_axis, [t for t in ticks(starts[0], end, 8) if t >= starts[0]], y_ticks, labels)]
    if legend:
        parts.append(_legend([name for name, _ in groups], "bar"))
    slot = (x_axis(starts[0] + width) - x_axis(starts[0])) - 2
    for place, (name, values) in enumerate(groups):
        for start, value in zip(starts, values, strict=True):
            if value:
                left = x_axis(start) + 1 + place * slot / len(groups)
                tip = f"{name}, {number(start)} to {number(start + width - 1)}: {number(value)}"
                parts.append(
                    _rectangle(
                        left,
                        y_axis(value),
                        slot / len(groups) - 1,
                        y_axis.start - y_axis(value),
                        f"bar s{place % 6 + 1}",
                        tip,
                    )
                )
    if shows_limit and limit is not None:
        parts.append(_line(x_axis(limit), y_axis.end, x_axis(limit), y_axis.start, "limit"))
        parts.append(_text(x_axis(limit) - 6, y_axis.end + 12, f"max_length {limit:g}", "end", "label"))
    return figure(height, title, description, _join(parts))


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
    margin = min(300.0, 16 + CHARACTER * max(len(_cut(spot.name)) for spot in spots))
    x_ticks = ticks(min(ends), max(ends), 6)
    height = 56 + (LINE + 4) * len(spots)
    x_axis = Axis(x_ticks[0], x_ticks[-1], margin + 12, WIDTH - 90)
    bottom = height - 44
    parts = [_line(x_axis(tick), 8, x_axis(tick), bottom) for tick in x_ticks]
    parts += [_text(x_axis(tick), bottom + 16, number(tick), "middle") for tick in x_ticks]
    parts.append(_text((x_axis.start + x_axis.end) / 2, bottom + 36, label, "middle", "label"))
    for place, spot in enumerate(spots):
        y = 24 + (LINE + 4) * place
        parts.append(_text(margin, y + 4, _cut(spot.name), "end", "label"))
        tip = f"{spot.name}: {number(spot.value)}"
        if spot.low is not None and spot.high is not None and math.isfinite(spot.low):
            parts.append(_line(x_axis(spot.low), y, x_axis(spot.high), y, "whisker"))
            parts += [_line(x_axis(end), y - 5, x_axis(end), y + 5, "whisker") for end in (spot.low, spot.high)]
            tip += f", {number(spot.low)} to {number(spot.high)}"
        kind = "hollow" if spot.is_baseline else "dot s1"
        parts.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="5"><title>{}</title></circle>').format(
                kind, x_axis(spot.value), y, tip
            )
        )
        parts.append(_text(WIDTH - 78, y + 4, number(spot.value), "start", "label"))
    return figure(height, title, description, _join(parts))


def _cut(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


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
    margin = min(230.0, 24 + CHARACTER * max(len(_cut(name, 30)) for name in rows))
    slanted = max(len(name) for name in columns) * CHARACTER > (WIDTH - margin) / len(columns)
    top = 34 + (min(110.0, 5.2 * max(len(_cut(name, 22)) for name in columns)) if slanted else 16)
    cell = min(110.0, (WIDTH - margin - 16) / len(columns))
    line = min(34.0, max(20.0, cell))
    height = top + line * len(rows) + 12
    parts = [
        _text(margin, 14, f"{labels[1]} →", "start", "label"),
        _text(4, top - 8, f"{labels[0]} ↓", "start", "label"),
    ]
    for place, name in enumerate(columns):
        x = margin + cell * (place + 0.5)
        if slanted:
            parts.append(
                Markup('<text class="tick" transform="translate({} {}) rotate(-45)">{}</text>').format(
                    round(x, 1), round(top - 6), _cut(name, 22)
                )
            )
        else:
            parts.append(_text(round(x, 1), top - 8, name, "middle"))
    for place, name in enumerate(rows):
        y = top + line * place
        parts.append(_text(margin - 8, round(y + line / 2 + 4, 1), _cut(name, 30), "end"))
        for column, (share, text) in enumerate(zip(shares[place], texts[place], strict=True)):
            x, tip = margin + cell * column, f"{name}, {columns[column]}: {text}"
            if share is None:
                parts.append(_rectangle(x + 1, y + 1, cell - 2, line - 2, "blank", tip))
            else:
                parts.append(
                    _rectangle(x + 1, y + 1, cell - 2, line - 2, "cell", tip, f"--share:{round(100 * share)}%")
                )
            if len(text) * CHARACTER <= cell:
                dark = "on-dark" if share is not None and share > 0.5 else "on-light"
                parts.append(_text(round(x + cell / 2, 1), round(y + line / 2 + 4, 1), text, "middle", f"tick {dark}"))
    return figure(height, title, description, _join(parts))


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
        _frame(axis, up, fifths, fifths, ("confidence", "share that is right")),
        _legend([name for name, *_ in groups]),
    ]
    parts.append(_line(axis(0), up(0), axis(1), up(1), "limit"))
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
    return figure(size + 116, title, description, _join(parts))
