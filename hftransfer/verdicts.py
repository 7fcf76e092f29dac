"""Verdicts: what was judged about data or a model, in words with numbers, as a run's folder keeps it.

A verdict is made by a diagnosis or by the advisor, stands in RUN/verdicts/KEY.json as plain data, and is shown by
report.html and by the model card. Charts are data, too, so that nothing read from a folder is inserted as markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hftransfer.errors import DataError
from hftransfer.run_files import VERDICTS_FOLDER, write_json

KEY = r"^[a-z][a-z_]*$"


class Part(BaseModel):
    """Base of what a verdict is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VerdictTable(Part):
    """Cells of text under a head.

    Attributes:
        caption: What it shows.
        head: Names of the columns.
        rows: Cells.
        texts: How many columns on the left are words; the others are right-aligned.
    """

    caption: str
    head: list[str]
    rows: list[list[str]]
    texts: int = 1


class Line(Part):
    """A line of a chart.

    Attributes:
        name: For the legend.
        points: (x, y), in the order of x; y is None where it is undefined.
        marked: Whether its points are drawn.
        ringed: The x of the point that counts.
    """

    name: str
    points: list[tuple[float, float | None]]
    marked: bool = True
    ringed: float | None = None


class LineChart(Part):
    """Lines over a common x."""

    kind: Literal["lines"] = "lines"
    title: str
    description: str
    lines: list[Line]
    x_label: str
    y_label: str


class Estimate(Part):
    """A row of an interval chart: an estimate, its interval if it has one, and whether it is a mere yardstick."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    is_baseline: bool = False


class IntervalChart(Part):
    """Estimates with their intervals, one below the other."""

    kind: Literal["intervals"] = "intervals"
    title: str
    description: str
    estimates: list[Estimate]
    label: str


Chart = Annotated[LineChart | IntervalChart, Field(discriminator="kind")]


class Verdict(Part):
    """What was judged.

    Attributes:
        key: Names the file and the section: advice, domain, forgetting, bias, ...
        title: Heading.
        words: The verdict in sentences, the most important one first; plain text that needs no table to be understood.
        warns: Whether a reader should act on it.
        tables: The numbers.
        charts: Pictures of them.
        hidden: Further tables, to be opened.
    """

    key: str = Field(pattern=KEY)
    title: str
    words: list[str] = Field(min_length=1)
    warns: bool = False
    tables: list[VerdictTable] = []
    charts: list[Chart] = []
    hidden: list[VerdictTable] = []


def write_verdict(folder: Path, verdict: Verdict) -> Path:
    """Keep a verdict in a run's folder, in place of an earlier one of the same key.

    Args:
        folder: The run's folder.
        verdict: What was judged.

    Returns:
        The file.
    """
    path = folder / VERDICTS_FOLDER / f"{verdict.key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, verdict.model_dump(mode="json"))
    return path


def read_verdicts(folder: Path) -> list[Verdict]:
    """The verdicts that a run's folder keeps, in the order of their keys.

    Raises:
        DataError: If one of them cannot be read.
    """
    found = []
    # A leading letter leaves out what a killed process had begun to write.
    for path in sorted((folder / VERDICTS_FOLDER).glob("[a-z]*.json")):
        try:
            found.append(Verdict.model_validate_json(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            reason = f"{error.error_count()} wrong fields" if isinstance(error, ValidationError) else str(error)
            raise DataError(f"not a verdict ({reason})", where=str(path), fix="make it again, or delete it") from None
    return found
