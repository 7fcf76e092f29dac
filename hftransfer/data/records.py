"""From records (mappings from column to value) to Arrow tables, without bending any value."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hftransfer.errors import DataError

Locate = Callable[[int], str]

CHUNK_ROWS = 65_536
"""Rows that are turned into a table at once where all rows are read."""
CHUNK_CHARACTERS = 32 << 20
"""Characters of a file after which the rows that are held are turned into a table, however few they are."""
DEEPEST = 20
"""Levels of lists and objects in one value: far more than any data has, and fewer than Arrow's 64."""


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """One table of several, each column in the widest of its types."""
    return pa.concat_tables(list(tables), promote_options="permissive")


def taken(items: Iterator[Any], most: int, read: Callable[[], int] | None = None) -> list[Any]:
    """The next items: `most` of them, or fewer that are large; none at the end.

    Args:
        items: What they are taken from.
        most: The largest number.
        read: How many characters of their file have been read so far.
    """
    if read is None:
        return list(itertools.islice(items, most))
    found, end = [], read() + CHUNK_CHARACTERS
    for item in itertools.islice(items, most):
        found.append(item)
        if read() > end:
            break
    return found


def row_number(row: int) -> str:
    """The place of a row in data without lines: rows count from 1."""
    return f"row {row + 1}"


def table_from_records(
    records: Iterable[dict[str, Any]], place: str, columns: Sequence[str] | None, locate: Locate = row_number
) -> pa.Table:
    """All of `tables_from_records` in one table."""
    return joined(tables_from_records(records, place, columns, locate, CHUNK_ROWS))


def tables_from_records(
    records: Iterable[dict[str, Any]],
    place: str,
    columns: Sequence[str] | None,
    locate: Locate,
    rows: int,
    read: Callable[[], int] | None = None,
) -> Iterator[pa.Table]:
    """Turn records into tables without bending any value.

    Args:
        records: One mapping from column to value per row; an absent column or NaN is null.
        place: The start of error messages.
        columns: Columns to keep where they exist; None keeps all.
        locate: From row index to its place, for error messages.
        rows: Most rows per table.
        read: How many characters of the records' file have been read so far; large records make small tables.

    Yields:
        An empty table, then the records.

    Raises:
        DataError: A column mixes types, or holds what Arrow cannot or what is nested too deeply.
    """
    kinds: dict[str, str] = {}
    yield pa.table({})
    stream, start = iter(records), 0
    while chunk := taken(stream, rows, read):
        names = dict.fromkeys(itertools.chain.from_iterable(chunk))
        kept = [name for name in names if columns is None or name in columns]
        arrays, here = {}, _shifted(locate, start)
        for name in kept:
            values = [_plain(record.get(name)) for record in chunk]
            _check_depth(name, values, place, here)
            _check_kind(name, values, kinds, place, here)
            arrays[name] = _to_arrow(name, values, place, here)
        if kept:
            yield pa.table(arrays)
        start += len(chunk)


def _shifted(locate: Locate, start: int) -> Locate:
    return lambda row: locate(start + row)


def _plain(value: Any) -> Any:
    """NumPy's values as Python's, and NaN as None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return None if isinstance(value, float) and value != value else value


def _check_depth(name: str, values: list[Any], place: str, locate: Locate) -> None:
    """Raise at the first value that is nested more deeply than Arrow and `datasets` can bear."""
    for row, value in enumerate(values):
        if isinstance(value, list | tuple | dict) and _deeper(value, DEEPEST):
            raise DataError(
                f"column {name!r} holds a value that is nested more than {DEEPEST} levels deep",
                where=f"{place}, {locate(row)}",
                fix="flatten it, or leave the column out",
            )


def _deeper(value: Any, levels: int) -> bool:
    """Whether a list or object has more levels than these."""
    inner = value.values() if isinstance(value, dict) else value
    return not levels or any(_deeper(one, levels - 1) for one in inner if isinstance(one, list | tuple | dict))


def kind_name(value: Any, levels: int = DEEPEST) -> str | None:
    """What a user would call the type of a value, down to so many levels of lists; None for null."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        inner = sorted({kind_name(one, levels - 1) or "null" for one in value}) if levels else []
        return f"a list of {' and '.join(inner)}" if inner else "a list"
    return "an object" if isinstance(value, dict) else type(value).__name__


def _check_kind(name: str, values: list[Any], kinds: dict[str, str], place: str, locate: Locate) -> None:
    """Raise at the first value whose kind differs from the kind of those before it."""
    types = set(map(type, values)) - {type(None)}
    if len(types) == 1 and types <= {str, int, float, bool}:
        kind = kind_name(next(iter(types))())
        if kind is not None and kinds.setdefault(name, kind) == kind:
            return
    for row, value in enumerate(values):
        kind = kind_name(value)
        if kind is None:
            continue
        known = kinds.get(name)
        if known is None or (known == "a list" and kind.startswith("a list")):
            kinds[name] = kind
        elif kind != known and not (kind == "a list" and known.startswith("a list")):
            raise DataError(
                f"column {name!r} is {kind}, but {known} in the rows before",
                where=f"{place}, {locate(row)}",
                fix="use one type throughout the column",
            )


def _to_arrow(name: str, values: list[Any], place: str, locate: Locate) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError, ValueError, TypeError):
        for row, value in enumerate(values):
            try:
                pa.array([value])
            except (pa.ArrowException, OverflowError, UnicodeError, ValueError, TypeError) as error:
                raise DataError(
                    f"column {name!r} holds a value that cannot be stored ({error})", where=f"{place}, {locate(row)}"
                ) from None
        row = _first_conflict(values)
        raise DataError(
            f"column {name!r} holds a value of another form than the rows before",
            where=f"{place}, {locate(row)}",
            fix="write all values alike: the same keys with values of one type, lists or none",
        ) from None


def _first_conflict(values: list[Any]) -> int:
    """The first row that cannot be stored together with those before it; each can alone, and all cannot."""
    low, high = 1, len(values)
    while low < high:
        middle = (low + high) // 2
        try:
            pa.array(values[:middle])
        except (pa.ArrowException, OverflowError, UnicodeError, ValueError, TypeError):
            high = middle
        else:
            low = middle + 1
    return low - 1
