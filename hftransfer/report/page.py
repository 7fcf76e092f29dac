"""A run folder as the report reads it, and what a page is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from hftransfer.errors import DataError
from hftransfer.report import facts
from hftransfer.report.svg import NONE, number
from hftransfer.run_files import LOG_FILE, METRICS_FILE, RECIPE_FILE, SEEDS_FOLDER

SPELLED = {
    "f1": "F1",
    "mcc": "MCC",
    "bleu": "BLEU",
    "chrf": "chrF",
    "mse": "mean squared error",
    "r2": "R²",
    "roc_auc": "ROC AUC",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
}


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; numbers are told by their column.

    Attributes:
        head: Names of the columns.
        rows: Cells.
        caption: What it shows.
        texts: How many columns on the left are words; the others are right-aligned.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    texts: int = 1


@dataclass
class Section:
    """A part of the page: a heading, words, charts, tables in sight and tables to open."""

    key: str
    title: str
    text: str = ""
    charts: list[Markup] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    hidden: list[Table] = field(default_factory=list)


class RunView:
    """What a run folder holds, as plain data.

    Args:
        folder: The run's folder.

    Raises:
        DataError: If it is no finished run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / METRICS_FILE).is_file():
            raise DataError("no finished run (metrics.json is missing)", where=str(folder), fix="name a run's folder")
        self.metrics: dict[str, Any] = self._json(METRICS_FILE)
        # Runs of earlier versions have no such file.
        self.facts: dict[str, Any] = self._json(facts.FILE) if (folder / facts.FILE).is_file() else {}
        self.recipe: dict[str, Any] = {}
        if (folder / RECIPE_FILE).is_file():
            self.recipe = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read ({error})", where=str(self.folder / name), fix="train anew") from error
        return found

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The records of the training log; of several seeds that of the chosen one."""
        path = self.folder / LOG_FILE
        if self.seeds and not path.is_file():
            path = self.folder / SEEDS_FOLDER / str(self.seeds["chosen"]) / LOG_FILE
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

    @property
    def seeds(self) -> dict[str, Any]:
        """What several seeds came to; empty for one."""
        found: dict[str, Any] = self.metrics.get("seeds", {})
        return found

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def split(self) -> str:
        """The split that counts: test where there is one."""
        return "test" if "test" in self.metrics else "validation"

    @property
    def metric(self) -> str:
        """The score that chose the model."""
        return str(self.metrics.get("training", {}).get("metric", "")) or next(iter(self.metrics[self.split]))

    @property
    def scores(self) -> dict[str, float | None]:
        """The scores of the split that counts."""
        found: dict[str, float | None] = self.metrics[self.split]
        return found

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """Name -> scores."""
        found: dict[str, dict[str, float]] = self.metrics.get("baselines", {})
        return found

    @property
    def count(self) -> int:
        """Examples of the split that counts."""
        return int(self.metrics["truncation"][self.split]["examples"])

    def interval(self, metric: str, split: str | None = None) -> tuple[float, float] | None:
        """The 95 % interval of a score over examples, where it is defined."""
        low, high = self.metrics.get("intervals", {}).get(split or self.split, {}).get(metric, (None, None))
        return None if low is None or high is None else (low, high)

    def setting(self, name: str, default: Any = None) -> Any:
        """A recipe's value by its dotted name."""
        value: Any = self.recipe
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value


def with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    """A score and its interval."""
    return brief(value) if interval is None else f"{brief(value)} [{brief(interval[0])}, {brief(interval[1])}]"


def brief(value: float | None) -> str:
    """A score for a table: three decimals below ten."""
    return number(value) if value is None or not math.isfinite(value) or abs(value) >= 10 else f"{value:.3f}"


def finite(value: float | None) -> float:
    """The value, NaN for none."""
    return math.nan if value is None else float(value)


def spelled(metric: str) -> str:
    """A score's name in words."""
    if metric.startswith("f1/"):
        return f"F1 of {metric[3:]}"
    return SPELLED.get(metric, metric.replace("f1_", "F1, ").replace("_", " "))


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it."""
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: float | None) -> str:
    """Bytes in the unit that suits them."""
    if count is None:
        return NONE
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
