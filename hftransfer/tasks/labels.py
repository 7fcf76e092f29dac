"""From a label column to label names, numbers and the problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hftransfer.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Problem = Literal["single_label", "multi_label", "regression"]

# More classes than half of the rows: an identifier or a number was taken for a label.
MAX_CLASS_SHARE, MIN_SUSPICIOUS_CLASSES = 0.5, 20


@dataclass(frozen=True)
class Labels:
    """The problem and the label names in the order of the model's outputs.

    Attributes:
        problem: What the labels are.
        names: Name of each output; empty for regression.
    """

    problem: Problem
    names: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """How many numbers the head puts out per row."""
        return max(len(self.names), 1)

    def encode(self, values: Sequence[Any], where: str) -> NDArray[Any]:
        """Labels as numbers: class indices (N,), a 0/1 matrix (N, C) or targets (N,).

        Raises:
            DataError: If a label is not among the names or is no number.
        """
        if len(values):
            _check_fits(values, self.problem, where)
        if self.problem == "regression":
            try:
                return np.asarray(values, dtype=np.float32)
            except (TypeError, ValueError):
                row, value = next((row, value) for row, value in enumerate(values) if not _is_number(value))
                raise DataError(
                    f"the label {str(value)[:40]!r} of row {row + 1} is not a number",
                    where=where,
                    fix="mend it, or set --task.problem single_label for classes",
                ) from None
        index = {name: position for position, name in enumerate(self.names)}
        if self.problem == "single_label":
            return np.asarray([_look_up(index, value, row, where) for row, value in enumerate(values)], dtype=np.int64)
        matrix_NC = np.zeros((len(values), len(self.names)), dtype=np.float32)
        for row, members in enumerate(values):
            for value in members:
                matrix_NC[row, _look_up(index, value, row, where)] = 1.0
        return matrix_NC


def infer_labels(dataset: Dataset, column: str, problem: str, where: str) -> Labels:
    """Find the problem and the label names from the training data.

    Args:
        dataset: The training examples.
        column: The label column.
        problem: What the user says, or "auto": lists are multi-label, numbers with fractions are regression.
        where: What to call the data in an error.

    Raises:
        DataError: If the labels do not fit the problem or leave nothing to learn.
    """
    values = dataset[column][:]
    if problem == "auto":
        problem = _guess(values)
    _check_fits(values, problem, f"{where}, column {column!r}")
    if problem == "regression":
        return Labels("regression", ())
    declared = _declared_names(dataset, column)
    names = declared or _sorted_names(values, problem == "multi_label")
    if len(names) < 2:
        raise DataError(
            f"the labels have {len(names)} class ({', '.join(names)})",
            where=f"{where}, column {column!r}",
            fix="a classifier needs at least two",
        )
    # Names that the data declare are labels, however few rows there are.
    if not declared and len(names) > max(MIN_SUSPICIOUS_CLASSES, MAX_CLASS_SHARE * len(values)):
        raise DataError(
            f"{len(names)} different labels in {len(values)} rows",
            where=f"{where}, column {column!r}",
            fix="name the label column with --data.label, or set --task.problem regression for a number",
        )
    return Labels(problem, tuple(names))  # type: ignore[arg-type]


def label_name(value: Any) -> str:
    """The name of a label value: whole numbers without a decimal point."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def column_names(dataset: Dataset, column: str) -> list[Any]:
    """The column's values, with the integers of a ClassLabel column replaced by their names."""
    values = list(dataset[column][:])
    names = _declared_names(dataset, column)
    if not names:
        return values
    if values and isinstance(values[0], list):
        return [[_named(names, number) for number in members] for members in values]
    return [_named(names, number) for number in values]


def _named(names: Sequence[str], number: Any) -> Any:
    """The name of a ClassLabel's number; -1 stands for no label and must not become the last name."""
    return names[number] if isinstance(number, int) and 0 <= number < len(names) else number


def _guess(values: Sequence[Any]) -> Problem:
    """The problem that a label column suggests."""
    first = values[0]
    if isinstance(first, list | tuple | np.ndarray):
        return "multi_label"
    if isinstance(first, float) and any(not float(value).is_integer() for value in values):
        return "regression"
    return "single_label"


def _check_fits(values: Sequence[Any], problem: str, where: str) -> None:
    """Refuse lists where one label is expected and the reverse."""
    is_list = isinstance(values[0], list | tuple | np.ndarray)
    if is_list != (problem == "multi_label"):
        found = "lists" if is_list else "single values"
        raise DataError(f"the labels are {found}", where=where, fix=f"they do not fit --task.problem {problem}")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _declared_names(dataset: Dataset, column: str) -> list[str]:
    """Names that a datasets ClassLabel feature declares, in its order."""
    feature = dataset.features[column]
    feature = getattr(feature, "feature", feature)
    return list(getattr(feature, "names", None) or [])


def _sorted_names(values: Sequence[Any], is_list: bool) -> list[str]:
    """All label names, numbers in numeric order."""
    distinct = {label for members in values for label in members} if is_list else set(values)
    numeric = all(isinstance(value, int | float) for value in distinct)
    return [label_name(value) for value in sorted(distinct, key=None if numeric else str)]


def _look_up(index: dict[str, int], value: Any, row: int, where: str) -> int:
    """The index of a label."""
    try:
        return index[label_name(value)]
    except KeyError:
        known = ", ".join(list(index)[:10])
        raise DataError(
            f"row {row + 1}: label {value!r} does not occur in the training data",
            where=where,
            fix=f"known labels are {known}",
        ) from None
