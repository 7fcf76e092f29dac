"""Parquet files, whose few bytes may stand for many: packed pages, and dictionaries whose entries are repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from hftransfer.data import bounded
from hftransfer.data.named import check_duplicates


def parquet_tables(path: Path, place: str, columns: Sequence[str] | None, rows: int) -> Iterator[pa.Table]:
    """Read a file a few rows at a time.

    Texts that are stored as entries of a dictionary are unpacked once it is known how much they are; those in lists and
    structs, of which that cannot be known, so few rows at a time that all of them might be the longest.

    Args:
        path: An existing file.
        place: The start of error messages, naming the file.
        columns: Columns to keep where they exist; None keeps all.
        rows: Most rows per table.

    Yields:
        An empty table, then tables of at most `rows` rows and `LONGEST_RECORD` bytes.

    Raises:
        DataError: Two columns have one name, or the file or a row expands beyond measure.
        pa.ArrowException: It is no parquet file.
    """
    file = pa.parquet.ParquetFile(path)
    names = file.schema_arrow.names
    check_duplicates(names, place)
    kept = [name for name in names if columns is None or name in columns]
    sizes = _unpacked_bytes(file, kept)
    if sum(sizes.values()) > bounded.most_bytes(path):
        bounded.refuse_explosion(path, place)
    schema = file.schema_arrow.empty_table().select(kept).schema
    yield _plain_values(schema.empty_table())
    texts = [column for _, column in _leaves(file, kept) if column.physical_type == "BYTE_ARRAY"]
    nested = sum(_most_unpacked(path, file, column.path) for column in texts if column.path not in kept)
    per_row = (sum(sizes.values()) + nested) // max(1, file.metadata.num_rows)
    rows = max(1, min(rows, bounded.LONGEST_RECORD // max(1, per_row)))
    start, flat = 0, [column.path for column in texts if column.path in kept]
    packed = pa.parquet.ParquetFile(path, read_dictionary=flat)
    for number in range(file.metadata.num_row_groups if kept else 0):
        for batch in packed.iter_batches(rows, row_groups=[number], columns=kept):
            for table in _pieces(pa.Table.from_batches([batch]), place, start):
                yield _plain_values(table)
            start += batch.num_rows


def _leaves(file: Any, kept: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """The stored columns that belong to the columns that are kept, with their numbers."""
    for number in range(len(file.schema)):
        column = file.schema.column(number)
        if column.path.partition(".")[0] in kept or column.path in kept:
            yield number, column


def _unpacked_bytes(file: Any, kept: Sequence[str]) -> dict[str, int]:
    """Bytes of the stored columns before they were packed, as the file says."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    return {
        column.path: sum(group.column(number).total_uncompressed_size for group in groups)
        for number, column in _leaves(file, kept)
    }


def _most_unpacked(path: Path, file: Any, leaf: str) -> int:
    """The bytes of a column of texts within lists or structs, were each of them the longest of its dictionary."""
    most = 0
    names = [file.schema.column(number).path for number in range(len(file.schema))]
    for number in range(file.metadata.num_row_groups):
        column = file.metadata.row_group(number).column(names.index(leaf))
        if column.has_dictionary_page:
            packed = pa.parquet.ParquetFile(path, read_dictionary=[leaf])
            first = next(packed.iter_batches(1, row_groups=[number], columns=[leaf]), None)
            array = first.column(0) if first is not None else pa.array([])
            while not pa.types.is_dictionary(array.type) and not pa.types.is_null(array.type):
                array = array.field(0) if pa.types.is_struct(array.type) else array.values
            longest = pc.max(pc.binary_length(array.dictionary)).as_py() if pa.types.is_dictionary(array.type) else 0
            most += (longest or 0) * column.num_values
    return most


def _pieces(table: pa.Table, place: str, start: int) -> Iterator[pa.Table]:
    """The table cut into parts that are small once they are unpacked."""
    size = sum(_bytes(chunk) for column in table.columns for chunk in column.chunks)
    if size <= bounded.LONGEST_RECORD:
        yield table
        return
    if table.num_rows == 1:
        bounded.refuse_long(f"{place}, row {start + 1}")
    half = table.num_rows // 2
    yield from _pieces(table.slice(0, half), place, start)
    yield from _pieces(table.slice(half), place, start + half)


def _bytes(array: pa.Array) -> int:
    """The bytes of an array, those of a dictionary's texts counted as often as they occur."""
    if not pa.types.is_dictionary(array.type) or not _is_text(array.type.value_type):
        return int(array.nbytes)
    lengths = pc.fill_null(pc.binary_length(array.dictionary), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return int(lengths[array.indices.drop_null().to_numpy(zero_copy_only=False)].sum())


def _is_text(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_unicode, pa.types.is_large_unicode, pa.types.is_binary, pa.types.is_large_binary)
    return any(one(kind) for one in kinds)


def _plain_values(table: pa.Table) -> pa.Table:
    """The table with dictionary encoding undone, in lists and structs as well."""
    fields = [field.with_type(_plain_type(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields, table.schema.metadata))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind.fields])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain_type(kind.value_type)))
    return kind
