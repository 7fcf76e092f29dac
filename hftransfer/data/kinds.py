"""What a column may hold, by the kinds that tasks declare: the type of every value, and no row without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from hftransfer.data.records import Locate
from hftransfer.errors import DataError
from hftransfer.recipe import ColumnKind


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type is one of the list types."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def class_values(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column of labels as classes: whole numbers as integers; None where some have a fraction, and are no classes."""
    if not pa.types.is_floating(column.type):
        return column
    return column.cast(pa.int64()) if pc.all(pc.equal(column, pc.floor(column))).as_py() else None


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is one of the string types."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_text_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a list of strings."""
    return is_list(kind) and is_text(kind.value_type)


def _is_tags(kind: pa.DataType) -> bool:
    return is_list(kind) and (is_text(kind.value_type) or pa.types.is_integer(kind.value_type))


def _is_spans(kind: pa.DataType) -> bool:
    """Lists of {start, end, label}; or lists without a single entry, whose type Arrow cannot know."""
    if not is_list(kind):
        return False
    inner = kind.value_type
    return pa.types.is_null(inner) or (pa.types.is_struct(inner) and _has(inner, "start", "end", "label"))


def _is_answers(kind: pa.DataType) -> bool:
    """{text, answer_start}, each one value or a list; or a list of such records."""
    inner = kind.value_type if is_list(kind) else kind
    return pa.types.is_struct(inner) and _has(inner, "text", "answer_start")


def _has(struct: pa.StructType, *names: str) -> bool:
    return set(names) <= {field.name for field in struct}


def refuse_rows(mask: Any, what: str, where: str, locate: Locate, fix: str = "correct or remove the row") -> None:
    """Raise at the first row where the mask holds, saying in how many rows it does."""
    row = pc.index(mask, pa.scalar(True)).as_py()
    if row < 0:
        return
    count = pc.sum(mask).as_py()
    others = f" (in {count:,} rows in all)" if count > 1 else ""
    raise DataError(f"{what}{others}", where=f"{where}, {locate(row)}", fix=fix)


def check_kind(
    dataset: Dataset, column: pa.ChunkedArray, name: str, kinds: Sequence[ColumnKind], where: str, locate: Locate
) -> None:
    """Check one column.

    Args:
        dataset: The split, whose features may declare classes.
        column: The column.
        name: Its name.
        kinds: What it may hold; the first whose type fits is checked.
        where: Start of error messages.
        locate: From the 0-based index of a row to its place.

    Raises:
        DataError: The column is of none of these kinds, or a row has no value or one that cannot be used.
    """
    if "label" in kinds:
        _check_labels(dataset, column.combine_chunks(), name, where, locate)
        return
    what = " or ".join(_MEANINGS[kind] for kind in kinds)
    refuse_rows(pc.is_null(column), f"no {_SHORT[kinds[0]]} in column {name!r}", where, locate)
    fitting = next((kind for kind in kinds if _FITS[kind](column.type)), None)
    if fitting is None:
        raise DataError(
            f"column {name!r} holds {column.type}, not {what}, such as {column[0].as_py()!r}",
            where=where,
            fix=f"name the column with {what}",
        )
    _CHECKS[fitting](column.combine_chunks(), name, where, locate)


def _check_text(column: pa.Array, name: str, where: str, locate: Locate) -> None:
    refuse_rows(pc.match_substring(column, "\0"), f"a NUL byte in column {name!r}", where, locate)


def _check_texts(column: pa.Array, name: str, where: str, locate: Locate) -> None:
    values, place = pc.list_flatten(column), _through(pc.list_parent_indices(column), locate)
    refuse_rows(pc.is_null(values), f"a null among the texts in column {name!r}", where, place)
    _check_text(values, name, where, place)


def _check_tags(column: pa.Array, name: str, where: str, locate: Locate) -> None:
    place = _through(pc.list_parent_indices(column), locate)
    refuse_rows(pc.is_null(pc.list_flatten(column)), f"a null among the tags in column {name!r}", where, place)


def _check_records(column: pa.Array, name: str, where: str, locate: Locate) -> None:
    if is_list(column.type):
        place = _through(pc.list_parent_indices(column), locate)
        refuse_rows(pc.is_null(pc.list_flatten(column)), f"a null in column {name!r}", where, place)


def _check_index(column: pa.Array, name: str, where: str, locate: Locate) -> None:
    refuse_rows(pc.less(column, 0), f"a negative number in column {name!r}", where, locate)


def _check_labels(dataset: Dataset, column: pa.Array, name: str, where: str, locate: Locate) -> None:
    kind = column.type
    refuse_rows(pc.is_null(column, nan_is_null=True), f"no label in column {name!r}", where, locate)
    values, place = column, locate
    if is_list(kind):
        values, kind = pc.list_flatten(column), kind.value_type
        place = _through(pc.list_parent_indices(column), locate)
        refuse_rows(pc.is_null(values, nan_is_null=True), f"a null among the labels in column {name!r}", where, place)
    if is_text(kind):
        refuse_rows(pc.equal(pc.utf8_trim_whitespace(values), ""), f"an empty label in column {name!r}", where, place)
    elif pa.types.is_floating(kind):
        refuse_rows(pc.invert(pc.is_finite(values)), f"an infinite label in column {name!r}", where, place)
    elif isinstance(dataset.features[name], ClassLabel):
        refuse_rows(pc.less(values, 0), f"no label (-1) in column {name!r}", where, place)
    elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or (pa.types.is_null(kind) and not len(values))):
        raise DataError(
            f"labels in column {name!r} are {kind}", where=where, fix="use strings, numbers or lists of them"
        )


def _through(parents: pa.Array, locate: Locate) -> Callable[[int], str]:
    return lambda entry: locate(parents[entry].as_py())


_SHORT: dict[ColumnKind, str] = {
    "text": "text",
    "texts": "texts",
    "index": "number",
    "tags": "tags",
    "spans": "spans",
    "answers": "answers",
}
_MEANINGS: dict[ColumnKind, str] = {
    "text": "text",
    "texts": "lists of texts",
    "index": "whole numbers",
    "tags": "lists of tags",
    "spans": "lists of {start, end, label}",
    "answers": "{text, answer_start}",
}
_FITS: dict[ColumnKind, Callable[[pa.DataType], bool]] = {
    "text": is_text,
    "texts": is_text_list,
    "index": pa.types.is_integer,
    "tags": _is_tags,
    "spans": _is_spans,
    "answers": _is_answers,
}
_CHECKS: dict[ColumnKind, Callable[[pa.Array, str, str, Locate], None]] = {
    "text": _check_text,
    "texts": _check_texts,
    "index": _check_index,
    "tags": _check_tags,
    "spans": _check_records,
    "answers": _check_records,
}
