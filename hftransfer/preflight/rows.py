"""What the data checks read of a split: the texts of every row, its label as something to compare, its number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hftransfer.data.copies import joined
from hftransfer.data.similar import Words, text_hashes
from hftransfer.recipe import Recipe
from hftransfer.tasks.labels import column_names, label_name

if TYPE_CHECKING:
    from datasets import Dataset

    from hftransfer.data.load import Splits


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split.

    Attributes:
        name: "train", "validation" or "test".
        texts: For every input column the text of each row.
        labels: The label of each row, equal where labels are equal; None where they are no classes, tags or numbers.
        numbers_N: The row that each was in its file, 0-based.
        hashes_N: A hash of all texts of each row.
    """

    name: str
    texts: tuple[list[str], ...]
    labels: list[Any] | None
    numbers_N: NDArray[np.int64]
    hashes_N: Words

    def __len__(self) -> int:
        return len(self.numbers_N)

    @property
    def letters(self) -> int:
        """How many letters there are."""
        return sum(map(len, (text for column in self.texts for text in column)))

    def joined(self, most: int) -> list[str]:
        """The texts of the first rows, each row's columns in one text."""
        return [" ".join(columns) for columns in zip(*(column[:most] for column in self.texts), strict=True)]


def rows_of_splits(splits: Splits, recipe: Recipe, problem: str | None) -> dict[str, SplitRows]:
    """The rows of all splits there are.

    Args:
        splits: The data; of streamed data, what was read of them.
        recipe: The recipe, which names the columns.
        problem: What the task's labels are ("single_label", "regression", ...), if it is one that has several.
    """
    found = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: _rows(name, dataset, recipe, problem) for name, dataset in found.items() if dataset is not None}


def _rows(name: str, dataset: Dataset, recipe: Recipe, problem: str | None) -> SplitRows:
    columns = tuple(
        [_as_text(value) for value in dataset[column][:]] for column in recipe.task.input_columns(recipe.data)
    )
    # The datasets library keeps a selection as indices into the whole.
    kept = getattr(dataset, "_indices", None)
    numbers_N = np.arange(len(dataset)) if kept is None else np.asarray(kept.column(0))
    return SplitRows(name, columns, _labels(dataset, recipe, problem), numbers_N, text_hashes(joined(columns)))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else " ".join(value)


def _labels(dataset: Dataset, recipe: Recipe, problem: str | None) -> list[Any] | None:
    """Labels that two rows of the same text should share; what may rightly differ (outputs, answers) is none."""
    kinds = recipe.task.label_columns(recipe.data)
    if not kinds or not {"label", "index", "tags"} & set(next(iter(kinds.values()))):
        return None
    values = column_names(dataset, recipe.data.label)
    if problem == "regression":
        return [float(value) for value in values]
    if problem == "multi_label":
        return [tuple(sorted(set(map(label_name, members)))) for members in values]
    if isinstance(values[0], list):
        # Spans of raw text are mappings: compared as they are written.
        return [tuple(map(str, members)) for members in values]
    return [label_name(value) for value in values]
