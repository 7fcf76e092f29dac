"""The parts that charts are drawn with: axes, ticks, text, lines and rectangles as SVG, and numbers as text.

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


def draw_text(x: float, y: float, text: str, anchor: str = "start", kind: str = "tick") -> Markup:
    """A text at a place."""
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def draw_line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> Markup:
    """A straight line."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, x1, y1, x2, y2)


def rectangle(x: float, y: float, width: float, height: float, kind: str, tip: str = "", style: str = "") -> Markup:
    """A rectangle with rounded corners, and what hovering it tells."""
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2"{}>{}</rect>').format(
        kind,
        round(x, 1),
        round(y, 1),
        round(max(width, 0), 1),
        round(max(height, 0), 1),
        Markup(' style="{}"').format(style) if style else "",
        Markup("<title>{}</title>").format(tip) if tip else "",
    )


def draw_join(parts: Sequence[Markup]) -> Markup:
    """Pieces of markup as one."""
    return Markup("").join(parts)


def frame(
    x_axis: Axis, y_axis: Axis, x_ticks: Sequence[float], y_ticks: Sequence[float], labels: tuple[str, str]
) -> Markup:
    """Grid, ticks and the names of both axes."""
    bottom, left = y_axis.start, x_axis.start
    parts = [draw_line(left, y_axis(tick), x_axis.end, y_axis(tick)) for tick in y_ticks]
    parts += [draw_text(left - 8, y_axis(tick) + 4, number(tick), "end") for tick in y_ticks]
    parts += [draw_text(x_axis(tick), bottom + 18, number(tick), "middle") for tick in x_ticks if tick <= x_axis.high]
    parts += [draw_line(left, bottom, x_axis.end, bottom, "axis")]
    parts += [draw_text((left + x_axis.end) / 2, bottom + 38, labels[0], "middle", "label")]
    parts += [draw_text(left - 44, y_axis.end - 14, labels[1], "start", "label")]
    return draw_join(parts)


def legend(names: Sequence[str], kind: str = "line") -> Markup:
    """The names of lines or bars, each with its colour."""
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
            parts.append(rectangle(x + 6, 8, 12, 12, f"bar s{number_of}"))
        parts.append(draw_text(round(x + 28, 1), 18, name, "start", "label"))
        x += 28 + CHARACTER * len(name) + 22
    return draw_join(parts)


def cut(name: str, most: int = 44) -> str:
    """A name, shortened."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
