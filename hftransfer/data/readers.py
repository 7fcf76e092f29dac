"""Read one file into an Arrow table, refusing what a reader would have to guess.

Comma- and tab-separated text and JSON go through the standard library's strict parsers rather than through pandas or
`datasets`, because those accept duplicate columns, mixed types and unbalanced quotes, and do not know the line of an
error. Only the wanted columns are kept, a chunk of rows at a time.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from hftransfer.data import bounded
from hftransfer.data.bounded import OPENERS, BoundedText, most_bytes, open_binary, refuse_explosion
from hftransfer.data.json_array import array_records
from hftransfer.data.named import check_duplicates
from hftransfer.data.parquet import parquet_tables
from hftransfer.data.records import (
    CHUNK_ROWS,
    Locate,
    joined,
    kind_name,
    row_number,
    tables_from_records,
    taken,
)
from hftransfer.data.squad_file import rows_of
from hftransfer.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, OSError)


def file_format(path: Path, where: str) -> str:
    """The format that a file name promises, such as ".csv" for "train.csv.gz".

    Raises:
        DataError: The ending is none of the formats'.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = suffixes[-1:] and suffixes[-1] in OPENERS
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
    if file_format(path, place) == ".json":
        tables = _json_tables(path, place, columns)
    else:
        tables = stream_tables(path, place, columns, CHUNK_ROWS)
    with _readable(path, place):
        return joined(_not_exploding(tables, path, place))


def _not_exploding(tables: Iterator[pa.Table], path: Path, place: str) -> Iterator[pa.Table]:
    """The tables, until they take a hundred times the room of their file and more than half a gigabyte."""
    held = 0
    for table in tables:
        held += table.nbytes
        if held > most_bytes(path):
            refuse_explosion(path, place)
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
            with BoundedText(path, place) as text:
                records = _json_lines(text)
                yield from tables_from_records(records, place, columns, row_locator(path), rows, lambda: text.taken)
        elif ending == ".parquet":
            yield from parquet_tables(path, place, columns, rows)
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
        kind = path.suffix.removeprefix(".")
        raise DataError(f"not a readable {kind} file: {error}", where=place, fix="write the file again") from error
    except _DAMAGED as error:
        raise DataError(f"cannot be read: {error}", where=place, fix="check that the file is complete") from error


def read_lines(path: Path, place: str) -> list[str]:
    """The lines of a text file that are not blank, without the white space around them.

    Raises:
        DataError: The file cannot be read, or is not UTF-8; the message names the line.
    """
    with _readable(path, place), BoundedText(path, place) as text:
        return [line.strip() for _, line in _numbered_lines(text)]


def row_locator(path: Path) -> Locate:
    """A function from the 0-based index of a row to its place in the file, such as "line 3".

    Lines count from 1, with the header; other formats have rows that count from 1. The file is read again when the
    function is called, because only an error message needs the answer.
    """
    ending = file_format(path, str(path))
    if ending in DELIMITERS:
        return lambda row: f"line {_nth(_delimited_lines(path, DELIMITERS[ending]), row)}"
    if ending == ".jsonl":
        return lambda row: f"line {_nth((number for number, _ in _numbered_lines(BoundedText(path, str(path)))), row)}"
    return row_number


def _encoding_error(path: Path, place: str) -> DataError:
    with open_binary(path) as stream:
        # A character has at most four bytes.
        for number, line in enumerate(iter(lambda: stream.readline(4 * bounded.LONGEST_RECORD), b""), start=1):
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
    with _long_cells(), BoundedText(path, str(path)) as text:
        reader = csv.reader(text.lines(), delimiter=delimiter, strict=True)
        previous, header = 0, True
        for record in reader:
            text.begin_record()
            if record and not header:
                yield previous + 1
            header = header and not record
            previous = reader.line_num


def _delimited_tables(
    path: Path, place: str, columns: Sequence[str] | None, delimiter: str, rows: int
) -> Iterator[pa.Table]:
    """An empty table, then the rows."""
    with _long_cells(), BoundedText(path, place) as text:
        reader = csv.reader(text.lines(), delimiter=delimiter, strict=True)
        records = _strict_records(reader, text)
        _, header = next(records, (0, []))
        if not header:
            raise DataError("the file is empty", where=place, fix="give a file with a header line and rows")
        check_duplicates(header, place)
        kept = [(at, name) for at, name in enumerate(header) if columns is None or name in columns]
        schema = pa.schema([(name, pa.string()) for _, name in kept])
        yield schema.empty_table()
        complete = _equal_width(records, header, place, delimiter)
        while chunk := taken(complete, rows, lambda: text.taken):
            cells = list(zip(*chunk, strict=True))
            yield pa.table([pa.array(cells[at], pa.string()) for at, _ in kept], schema=schema)


def _strict_records(reader: Any, text: BoundedText) -> Iterator[tuple[int, list[str]]]:
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
                where=f"{text.place}, line {first if open_quote else reader.line_num}",
                fix='put cells that hold a quote into quotes and double the quotes inside: "say ""yes"""',
            ) from None
        text.begin_record()
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


def _numbered_lines(text: BoundedText) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    for number, line in enumerate(text.lines(), start=1):
        text.begin_record()
        if line.strip():
            yield number, line


def _json_lines(text: BoundedText) -> Iterator[dict[str, Any]]:
    for number, line in _numbered_lines(text):
        here = f"{text.place}, line {number}"
        if number == 1 and line.lstrip().startswith("["):
            raise DataError("this is a JSON array, not one object a line", where=here, fix="name the file .json")
        yield _record(_parse_json(line, here), here)


def _json_tables(path: Path, place: str, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    with _readable(path, place), BoundedText(path, place) as text:
        found = enumerate(rows_of(array_records(text, _unique_keys), place))
        records = (_record(value, f"{place}, {row_number(row)}") for row, value in found)
        yield from tables_from_records(records, place, columns, row_number, CHUNK_ROWS, lambda: text.taken)


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg} at column {error.colno}", where=place) from None
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
