"""Read one file into an Arrow table, refusing what a reader would have to guess.

Comma- and tab-separated text and JSON go through the standard library's strict parsers rather than through pandas or
`datasets`, because those accept duplicate columns, mixed types and unbalanced quotes, and do not know the line of an
error. Only the wanted columns are kept, a chunk of rows at a time.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet

from hftransfer.data.named import check_duplicates
from hftransfer.data.records import (
    CHUNK_ROWS,
    Locate,
    joined,
    kind_name,
    row_number,
    table_from_records,
    tables_from_records,
)
from hftransfer.data.squad_file import is_squad, squad_rows
from hftransfer.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
EXPANSION, LEAST_EXPLOSION = 100, 512 << 20
"""A packed file that takes so many times its size, and so many bytes, is taken for damaged or made to do harm."""
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, OSError)


def file_format(path: Path, where: str) -> str:
    """The format that a file name promises, such as ".csv" for "train.csv.gz".

    Raises:
        DataError: The ending is none of the formats'.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = suffixes[-1:] and suffixes[-1] in _OPENERS
    ending = suffixes[-2] if packed and len(suffixes) == 2 else "".join(suffixes[-1:])
    if ending not in FORMATS or (packed and ending == ".parquet"):
        raise DataError(
            f"cannot tell the format of {path.name!r}", where=where, fix=f"use a file that ends in {', '.join(FORMATS)}"
        )
    return ending


def read_table(path: Path, place: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file.

    Args:
        path: An existing file.
        place: The start of error messages, naming the file.
        columns: Columns to keep where they exist; None keeps all.

    Returns:
        The table. Columns of csv and tsv files are strings, an empty cell is "".

    Raises:
        DataError: The file is damaged, malformed or ambiguous; the message names the line or row.
    """
    ending = file_format(path, place)
    with _readable(path, place):
        if ending == ".json":
            return table_from_records(_json_records(path, place), place, columns)
        if ending == ".parquet":
            return _plain_values(_parquet(path, place).read(columns=_parquet_columns(path, place, columns)))
    return joined(_not_exploding(stream_tables(path, place, columns, CHUNK_ROWS), path, place))


def _not_exploding(tables: Iterator[pa.Table], path: Path, place: str) -> Iterator[pa.Table]:
    """The tables, until they take a hundred times the room of their file and more than half a gigabyte."""
    held, most = 0, max(LEAST_EXPLOSION, EXPANSION * path.stat().st_size)
    for table in tables:
        held += table.nbytes
        if held > most:
            raise DataError(
                f"the file expands to more than {most >> 20:,} MiB, over {EXPANSION} times its size",
                where=place,
                fix="is it damaged? unpack it and look",
            )
        yield table


def stream_tables(path: Path, place: str, columns: Sequence[str] | None, rows: int) -> Iterator[pa.Table]:
    """Read a file a few rows at a time; arguments and errors as in `read_table`.

    Yields:
        Tables of at most `rows` rows in the order of the file, at least one. A column of JSON lines has the type of
        the values in this table, which may be integers here and fractions there.
    """
    ending = file_format(path, place)
    with _readable(path, place):
        if ending in DELIMITERS:
            yield from _delimited_tables(path, place, columns, DELIMITERS[ending], rows)
        elif ending == ".jsonl":
            yield from tables_from_records(_json_lines(path, place), place, columns, row_locator(path), rows)
        elif ending == ".parquet":
            kept = _parquet_columns(path, place, columns)
            file = _parquet(path, place)
            yield _plain_values(file.schema_arrow.empty_table().select(kept or file.schema_arrow.names))
            for batch in file.iter_batches(rows, columns=kept):
                yield _plain_values(pa.Table.from_batches([batch]))
        else:
            raise DataError("a JSON array cannot be streamed", where=place, fix="store one object a line in a .jsonl")


@contextlib.contextmanager
def _readable(path: Path, place: str) -> Iterator[None]:
    """Turn what a damaged file raises into a DataError."""
    try:
        yield
    except UnicodeDecodeError:
        raise _encoding_error(path, place) from None
    except pa.ArrowException as error:
        raise DataError(f"not a readable parquet file: {error}", where=place, fix="write the file again") from error
    except _DAMAGED as error:
        raise DataError(f"cannot be read: {error}", where=place, fix="check that the file is complete") from error


def row_locator(path: Path) -> Locate:
    """A function from the 0-based index of a row to its place in the file, such as "line 3".

    Lines count from 1, with the header; other formats have rows that count from 1. The file is read again when the
    function is called, because only an error message needs the answer.
    """
    ending = file_format(path, str(path))
    if ending in DELIMITERS:
        return lambda row: f"line {_nth(_delimited_lines(path, DELIMITERS[ending]), row)}"
    if ending == ".jsonl":
        return lambda row: f"line {_nth((number for number, _ in _numbered_lines(path)), row)}"
    return row_number


def _open_binary(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", _OPENERS.get(path.suffix.lower(), lambda file: file.open("rb"))(path))


def _open_text(path: Path) -> io.TextIOWrapper:
    # newline="" leaves line ends inside quoted cells as they are; utf-8-sig drops the mark that Excel puts first.
    return io.TextIOWrapper(_open_binary(path), encoding="utf-8-sig", newline="")


def _encoding_error(path: Path, place: str) -> DataError:
    with _open_binary(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                wide = number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff"))
                guess = "UTF-16" if wide else "WINDOWS-1252"
                return DataError(
                    f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}, which is not UTF-8",
                    where=f"{place}, line {number}",
                    fix=f"save the file as UTF-8; if it is {guess}: iconv -f {guess} -t UTF-8",
                )
    return DataError("not UTF-8", where=place, fix="save the file as UTF-8")


def _nth(numbers: Iterable[int], position: int) -> int:
    return next(itertools.islice(numbers, position, None))


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters per cell, which a long document exceeds."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _delimited_lines(path: Path, delimiter: str) -> Iterator[int]:
    """The first line of every record after the header."""
    with _long_cells(), _open_text(path) as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        previous, header = 0, True
        for record in reader:
            if record and not header:
                yield previous + 1
            header = header and not record
            previous = reader.line_num


def _delimited_tables(
    path: Path, place: str, columns: Sequence[str] | None, delimiter: str, rows: int
) -> Iterator[pa.Table]:
    """An empty table, then the rows."""
    with _long_cells(), _open_text(path) as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        records = _strict_records(reader, place)
        _, header = next(records, (0, []))
        if not header:
            raise DataError("the file is empty", where=place, fix="give a file with a header line and rows")
        check_duplicates(header, place)
        kept = [(at, name) for at, name in enumerate(header) if columns is None or name in columns]
        schema = pa.schema([(name, pa.string()) for _, name in kept])
        yield schema.empty_table()
        while chunk := list(itertools.islice(_equal_width(records, header, place, delimiter), rows)):
            cells = list(zip(*chunk, strict=True))
            yield pa.table([pa.array(cells[at], pa.string()) for at, _ in kept], schema=schema)


def _strict_records(reader: Any, place: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with its first line."""
    first = 1
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            open_quote = "unexpected end" in str(error)
            what = "a quote that opens here is never closed" if open_quote else f"a stray quote ({error})"
            raise DataError(
                what,
                where=f"{place}, line {first if open_quote else reader.line_num}",
                fix='put cells that hold a quote into quotes and double the quotes inside: "say ""yes"""',
            ) from None
        if record:
            yield first, record
        first = reader.line_num + 1


def _equal_width(
    records: Iterator[tuple[int, list[str]]], header: list[str], place: str, delimiter: str
) -> Iterator[list[str]]:
    for line, record in records:
        if len(record) != len(header):
            raise DataError(
                f"{len(record)} cells where the header has {len(header)}",
                where=f"{place}, line {line}",
                fix=f"put cells that hold a {delimiter!r} or a line break into quotes",
            )
        yield record


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    with _open_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, line


def _json_lines(path: Path, place: str) -> Iterator[dict[str, Any]]:
    for number, line in _numbered_lines(path):
        here = f"{place}, line {number}"
        if number == 1 and line.lstrip().startswith("["):
            raise DataError("this is a JSON array, not one object a line", where=here, fix="name the file .json")
        yield _record(_parse_json(line, here), here)


def _json_records(path: Path, place: str) -> Iterator[dict[str, Any]]:
    with _open_text(path) as stream:
        text = stream.read()
    content = _parse_json(text, place, lines=True)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise DataError("not a list of records", where=place, fix='write [{...}, ...] or {"data": [{...}, ...]}')
    if is_squad(content):
        content = list(squad_rows(content, place))
    for row, record in enumerate(content):
        yield _record(record, f"{place}, {row_number(row)}")


def _parse_json(text: str, place: str, *, lines: bool = False) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        where = f"{place}, line {error.lineno}" if lines else place
        fix = "name the file .jsonl if it has one object a line" if error.msg == "Extra data" and lines else None
        raise DataError(f"not valid JSON: {error.msg} at column {error.colno}", where=where, fix=fix) from None
    except RecursionError:
        raise DataError("the JSON is nested too deeply", where=place) from None
    except ValueError as error:
        raise DataError(f"not usable JSON: {error}", where=place) from None
    except KeyError as error:
        raise DataError(f"the key {error.args[0]!r} comes twice in one object", where=place) from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return record


def _record(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{kind_name(value) or 'null'} where a record is wanted", where=place, fix='write {"column": value, ...}'
        )
    return value


def _parquet(path: Path, place: str) -> pa.parquet.ParquetFile:
    file = pa.parquet.ParquetFile(path)
    check_duplicates(file.schema_arrow.names, place)
    return file


def _parquet_columns(path: Path, place: str, columns: Sequence[str] | None) -> list[str] | None:
    names = _parquet(path, place).schema_arrow.names
    return None if columns is None else [name for name in names if name in columns]


def _plain_values(table: pa.Table) -> pa.Table:
    """The table with dictionary encoding undone."""
    for position, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(position, field.name, table.column(position).cast(field.type.value_type))
    return table
