"""Refuse data that would train a wrong model without an error.

`datasets` accepts NUL bytes, missing labels and labels that only validation has; each of them is found here, with its
row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from hftransfer.data.agreement import check_agreement
from hftransfer.data.kinds import check_kind, is_list, refuse_rows
from hftransfer.data.named import USUAL_TASK, check_present, needed_columns
from hftransfer.data.records import Locate, row_number
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection, TaskSection

_NAMED = 5
# How the cells of a text file must be written to be numbers. Integers as Python prints them: "007" is a name.
NUMBER_PATTERNS = (
    (r"^(0|-?[1-9][0-9]{0,17})$", pa.int64()),
    (r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$", pa.float64()),
)


def column_of(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """One column as Arrow data, shape (rows,), with dictionary encoding undone."""
    column = dataset.select_columns([name]).with_format("arrow")[:].column(name)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def typed_labels(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The cells of a text file as numbers, if every one is written as a number."""
    kinds = number_kinds(column, [kind for _, kind in NUMBER_PATTERNS])
    return column.cast(kinds[0]) if len(column) and kinds else column


def number_kinds(column: pa.ChunkedArray, among: list[pa.DataType]) -> list[pa.DataType]:
    """Those of some types, the narrowest first, in which all cells of a text column are written."""
    return [
        kind
        for pattern, kind in NUMBER_PATTERNS
        if kind in among and pc.all(pc.match_substring_regex(column, pattern), min_count=0).as_py()
    ]


def check_columns(
    dataset: Dataset,
    section: DataSection,
    where: str,
    *,
    labelled: bool = True,
    locate: Locate = row_number,
    task: TaskSection = USUAL_TASK,
) -> None:
    """Check the columns of one split that a section names.

    Args:
        dataset: The split.
        section: The data section.
        where: Start of error messages, such as "train (train.csv)".
        labelled: Whether the label and group columns are needed.
        locate: From the 0-based index of a row to its place, such as "line 3".
        task: Says what the columns may hold.

    Raises:
        DataError: A column is missing or double, the split is empty, a value is missing or of no usable type, a text
            holds NUL, or a group is missing. The message names the first such row.
    """
    check_present(dataset.column_names, needed_columns(section, task, labelled=labelled), where)
    if not len(dataset):
        raise DataError("no rows", where=where, fix="give data with at least one row")
    for name, kinds in task.input_columns(section).items():
        check_kind(dataset, column_of(dataset, name), name, kinds, where, locate)
    if labelled:
        for name, kinds in task.label_columns(section).items():
            check_kind(dataset, column_of(dataset, name), name, kinds, where, locate)
        check_agreement(lambda name: column_of(dataset, name), section, task, where, locate)
        if section.group is not None:
            refuse_rows(pc.is_null(column_of(dataset, section.group)), f"no value in {section.group!r}", where, locate)


def check_several_classes(dataset: Dataset, section: DataSection, where: str) -> None:
    """Raise a DataError if all rows of a single-label split have one label."""
    column = column_of(dataset, section.label)
    if not is_list(column.type) and len(values := pc.unique(column)) < 2:
        raise DataError(
            f"every row has the label {values[0].as_py()!r}", where=where, fix="give examples of at least two labels"
        )


def check_labels_known(
    dataset: Dataset, section: DataSection, known: Iterable[Any], *, where: str, locate: Locate = row_number
) -> None:
    """Check that a split has no label outside those that the model learns.

    Args:
        dataset: Validation, test or evaluation data.
        section: The data section.
        known: The labels of the training data. Labels are compared by name: 1, 1.0 and "1" are one label.
        where: Start of error messages.
        locate: From the 0-based index of a row to its place.

    Raises:
        DataError: There are other labels; the message names them and the first row of each.
    """
    names = {_label_name(value) for value in known}
    column = column_of(dataset, section.label).combine_chunks()
    values = pc.list_flatten(column) if is_list(column.type) else column
    unknown = [value for value in pc.unique(values) if _label_name(value.as_py()) not in names]
    if not unknown:
        return
    rows = pc.list_parent_indices(column) if is_list(column.type) else None
    found = []
    for value in unknown[:_NAMED]:
        at = pc.index(values, value).as_py()
        found.append(f"{value.as_py()!r} ({locate(at if rows is None else rows[at].as_py())})")
    more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    shown = ", ".join(map(repr, sorted(names)[:20])) + (", ..." if len(names) > 20 else "")
    raise DataError(
        f"labels that the training data does not have: {', '.join(found)}{more}",
        where=where,
        fix=f"correct them or add training examples; known labels are {shown}",
    )


def check_groups_apart(
    first: Dataset, second: Dataset, group: str, *, name: str = "train", where: str, locate: Locate = row_number
) -> None:
    """Raise a DataError if a group of the first split is in the second, too.

    Args:
        first: A split.
        second: The split that the message is about.
        group: The column whose equal values must not land in two splits.
        name: What the first split is called.
        where: Start of error messages.
        locate: From the 0-based index of a row of `second` to its place.
    """
    values, others = column_of(second, group), pc.unique(column_of(first, group))
    if values.type != others.type:
        values, others = values.cast(pa.string()), others.cast(pa.string())
    refuse_rows(pc.is_in(values, value_set=others), f"a value of {group!r} that {name} has, too", where, locate)


def _label_name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def has_no_labels(dataset: Dataset, name: str) -> bool:
    """Whether a split of a benchmark keeps its labels back: every one is -1, as in GLUE's test sets."""
    if name not in dataset.column_names or not isinstance(dataset.features[name], ClassLabel) or not len(dataset):
        return False
    return bool(pc.all(pc.less(column_of(dataset, name), 0)).as_py())
