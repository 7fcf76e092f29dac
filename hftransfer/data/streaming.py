"""Training data that are read in chunks, so that memory is bounded by the chunk and not by the number of rows.

One first pass checks every row, counts the rows and finds the labels; it keeps the first chunk and one row of every
label that comes later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    ClassLabel,
    Dataset,
    DatasetInfo,
    Features,
    IterableDataset,
    get_dataset_split_names,
    load_dataset,
)

from hftransfer.data.check import NUMBER_PATTERNS, check_columns, number_kinds
from hftransfer.data.kinds import is_list
from hftransfer.data.load import Splits, complete, dataset_from, file_parts, load_file
from hftransfer.data.named import USUAL_TASK, check_exists, check_present, dataset_and_revision, needed_columns
from hftransfer.data.parts import Part
from hftransfer.data.readers import DELIMITERS, file_format, row_locator, stream_tables
from hftransfer.data.records import Locate, row_number
from hftransfer.errors import DataError

if TYPE_CHECKING:
    from hftransfer.recipe import DataSection, TaskSection

# Rows that a reader holds at once, besides the chunk.
PIECE_ROWS = 4096
# Beyond so many different labels an identifier or a number was taken for a label.
MAX_LABELS = 100_000


@dataclass
class Stream:
    """Rows that can be read from the start as often as needed, always in the same order.

    Attributes:
        place: What error messages call it.
        columns: The columns to keep.
        label: The label column.
        pieces: Starts a pass: tables of at most `PIECE_ROWS` rows.
        locate: From the 0-based index of a row to its place.
        text_cells: Whether labels are cells of a text file, which become numbers if every one is written as one.
        feature: What the source declares of its label column, such as class names.
        label_type: Type of the label column in all chunks, once the first pass has found it.
        num_rows: How many rows there are, likewise.
        digest: A hash of all rows, likewise.
    """

    place: str
    columns: list[str]
    label: str
    pieces: Callable[[], Iterator[pa.Table]]
    locate: Locate = row_number
    text_cells: bool = False
    feature: Any = None
    label_type: pa.DataType | None = None
    num_rows: int = 0
    digest: str = ""

    def chunks(self, rows: int, start: int = 0) -> Iterator[Dataset]:
        """Datasets of `rows` rows (the last one may have fewer), from row `start` on."""
        held: list[pa.Table] = []
        count, skip = 0, start
        for piece in self.tables():
            piece, skip = piece.slice(skip), max(0, skip - piece.num_rows)
            while piece.num_rows:
                taken = piece.slice(0, rows - count)
                held.append(taken)
                count, piece = count + taken.num_rows, piece.slice(taken.num_rows)
                if count == rows:
                    yield self.dataset(pa.concat_tables(held))
                    held, count = [], 0
        if held:
            yield self.dataset(pa.concat_tables(held))

    def tables(self) -> Iterator[pa.Table]:
        """One pass over the wanted columns, the labels in their common type."""
        for piece in self.pieces():
            if piece.num_rows:
                table = piece.select(self.columns)
                yield table if self.label_type is None else _cast_column(table, self.label, self.label_type)

    def dataset(self, table: pa.Table) -> Dataset:
        """A table with what the source declares of its labels."""
        if self.feature is None:
            return Dataset(table)
        features = Features({**Features.from_arrow_schema(table.schema), self.label: self.feature})
        return Dataset(table.cast(features.arrow_schema), info=DatasetInfo(features=features))


def load_stream(section: DataSection, *, seed: int, stratify: bool, task: TaskSection = USUAL_TASK) -> Splits:
    """As `load_splits`, with training data that stay where they are.

    Raises:
        DataError: If the data cannot be streamed, found or used, or the section asks for what needs all rows at once.
    """
    _check_task(task)
    if section.name is not None and section.train is not None:
        raise DataError("both train and name are given", where="data", fix="give files or a dataset's name")
    if section.name is not None:
        stream = _stream_of_dataset(
            _hub_split(section, section.split_names["train"]), section, f"data.name ({section.name})"
        )
        parts = _other_hub_splits(section) | file_parts(section)
    elif section.train is not None:
        parts = file_parts(section.model_copy(update={"train": None}))
        stream = _stream_of_file(Path(section.train), section)
    else:
        raise DataError("no training data", where="data", fix="set data.train to a file or data.name to a dataset")
    return _finish(stream, parts, section, seed, stratify)


def stream_from_objects(
    train: Any,
    validation: Any,
    test: Any,
    section: DataSection,
    *,
    seed: int,
    stratify: bool,
    task: TaskSection = USUAL_TASK,
) -> Splits:
    """As `load_stream`, from a Dataset or IterableDataset; the other splits are held in memory."""
    _check_task(task)
    if not isinstance(train, Dataset | IterableDataset):
        raise DataError(
            f"data of type {type(train).__name__} are in memory already",
            where="train",
            fix="give a Dataset or an IterableDataset, or set --data.streaming false",
        )
    parts = {
        name: Part(dataset_from(source, name, needed_columns(section)), name)
        for name, source in (("validation", validation), ("test", test))
        if source is not None
    }
    return _finish(_stream_of_dataset(train, section, "train"), parts, section, seed, stratify)


def _check_task(task: TaskSection) -> None:
    """Refuse a task whose labels are no classes or numbers, of which one pass could tell the names and the type."""
    if task.label_kinds != USUAL_TASK.label_kinds:
        raise DataError(
            "only the data of text classification can be streamed",
            where="data.streaming",
            fix="set --data.streaming false",
        )


def _finish(stream: Stream, parts: dict[str, Part], section: DataSection, seed: int, stratify: bool) -> Splits:
    """Make the first pass and check the other splits against what it found."""
    refused = {"max_train_examples": section.max_train_examples, "group": section.group}
    for name in (name for name, value in refused.items() if value is not None):
        raise DataError("needs all rows at once", where=f"data.{name}", fix="leave it out, or --data.streaming false")
    if "validation" not in parts:
        raise DataError(
            "no validation data; none can be cut off a stream", where="data", fix="give data.validation, a file"
        )
    head, late = scan(stream, section, classes=stratify)
    found = complete({"train": Part(head, stream.place, stream.locate), **parts}, section, seed, stratify)
    # The other splits may have given the labels a common type.
    stream.feature = found.train.features[section.label]
    chunks = -(-stream.num_rows // section.chunk_examples)
    notes = [f"train: {stream.num_rows:,} rows, streamed in {chunks:,} chunks of {section.chunk_examples:,}"]
    if chunks > 1:
        notes.append("figures of the training data are those of the first chunk; rows are shuffled within chunks alone")
    if late:
        notes.append(f"{late:,} labels first come after the first chunk: shuffle the file if it is sorted")
    return Splits(found.train, found.validation, found.test, (*found.notes, *notes), stream)


def scan(stream: Stream, section: DataSection, *, classes: bool) -> tuple[Dataset, int]:
    """The first pass: check and count all rows, and find the labels.

    Args:
        stream: Gets its number of rows, digest and label type.
        section: The data section.
        classes: Whether labels may be classes, whose names must be known.

    Returns:
        The first chunk, with one row of every label that comes later; and how many such labels there are.

    Raises:
        DataError: As `check_columns`, or there are too many labels.
    """
    seen: set[Any] = set()
    kept: list[pa.Table] = []
    types: list[pa.DataType] = []
    numbers = [kind for _, kind in NUMBER_PATTERNS] if stream.text_cells else []
    digest, late = hashlib.sha256(), 0
    for table in stream.tables():
        start = stream.num_rows
        here = _shifted(stream.locate, start)
        check_columns(stream.dataset(table), section, stream.place, locate=here)
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
        column = table.column(section.label).combine_chunks()
        types += [column.type] if column.type not in types else []
        numbers = number_kinds(column, numbers) if numbers else []
        rows = _rows_with_new_labels(column, seen) if classes else []
        if len(seen) > MAX_LABELS:
            raise DataError(
                f"more than {MAX_LABELS:,} different labels",
                where=f"{stream.place}, column {section.label!r}",
                fix="name the label column with --data.label, or set --task.problem regression for a number",
            )
        inside = max(0, section.chunk_examples - start)
        later = [row for row in rows if row >= inside]
        # Taken, not sliced: a slice would hold the whole piece.
        kept += [table.slice(0, inside)] if inside else []
        kept += [table.take(pa.array(later))] if later else []
        late += len(later)
        stream.num_rows += table.num_rows
    if not kept:
        raise DataError("no rows", where=stream.place, fix="give data with at least one row")
    stream.digest = digest.hexdigest()
    schemas = [pa.schema([(section.label, kind)]) for kind in types]
    widest = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    stream.label_type = numbers[0] if numbers else widest
    head = pa.concat_tables([_cast_column(table, section.label, stream.label_type) for table in kept])
    return stream.dataset(head), late


def _rows_with_new_labels(column: pa.Array, seen: set[Any]) -> list[int]:
    """Rows of a piece that have a label not seen before, ascending; the labels are added to `seen`.

    Of fractions one is enough: they are values, not names.
    """
    values = pc.list_flatten(column) if is_list(column.type) else column
    parents = pc.list_parent_indices(column) if is_list(column.type) else None
    rows = set()
    for value in pc.unique(values):
        key: Any = value.as_py()
        if isinstance(key, float):
            key = int(key) if key.is_integer() else "a fraction"
        if (type(key), key) not in seen:
            seen.add((type(key), key))
            at = pc.index(values, value).as_py()
            rows.add(at if parents is None else parents[at].as_py())
    return sorted(rows)


def _stream_of_file(file: Path, section: DataSection) -> Stream:
    """The rows of a csv, tsv, jsonl or parquet file, or of a saved folder, which lies on disk as it is used."""
    place = f"data.train ({file})"
    check_exists(str(file), "data.train")
    if file.is_dir():
        return _stream_of_dataset(load_file(str(file), where="data.train"), section, place)
    wanted = needed_columns(section)
    first = next(table for table in stream_tables(file, place, None, PIECE_ROWS) if table.num_columns)
    check_present(first.column_names, wanted, place)
    return Stream(
        place,
        wanted,
        section.label,
        lambda: stream_tables(file, place, wanted, PIECE_ROWS),
        row_locator(file),
        text_cells=file_format(file, place) in DELIMITERS and section.label not in (section.text, section.text_pair),
    )


def _stream_of_dataset(source: Dataset | IterableDataset, section: DataSection, place: str) -> Stream:
    """The rows of a dataset on disk or on the Hub."""
    names = source.column_names or list(next(iter(source)))
    wanted = needed_columns(section)
    check_present(names, wanted, place)
    arrow = source.select_columns(wanted).with_format("arrow")
    feature = source.features[section.label] if source.features else None
    declared = isinstance(getattr(feature, "feature", feature), ClassLabel)
    return Stream(
        place, wanted, section.label, lambda: iter(arrow.iter(PIECE_ROWS)), feature=feature if declared else None
    )


def _hub_split(section: DataSection, split: str) -> IterableDataset:
    """A split of the named dataset, opened and not downloaded."""
    name, revision = dataset_and_revision(section)
    try:
        return load_dataset(name, section.config, revision=revision, split=split, streaming=True)
    except Exception as error:  # no common base: connection, missing dataset or split, wrong configuration
        raise DataError(
            f"the split {split!r} cannot be opened: {error.__cause__ or error}",
            where=f"data.name ({section.name})",
            fix="check name, @revision, config, the split's name and the connection to the Hub",
        ) from error


def _other_hub_splits(section: DataSection) -> dict[str, Part]:
    """Validation and test data of the named dataset, read into memory, where it has them."""
    name, revision = dataset_and_revision(section)
    try:
        there = get_dataset_split_names(name, section.config, revision=revision)
    except Exception as error:  # as above
        raise DataError(
            f"its splits cannot be listed: {error.__cause__ or error}",
            where=f"data.name ({section.name})",
            fix="check name, @revision, config and the connection to the Hub",
        ) from error
    parts = {}
    for role, split in section.split_names.items():
        if role != "train" and split in there:
            place = f"data.name ({section.name}), split {split}"
            stream = _stream_of_dataset(_hub_split(section, split), section, place)
            parts[role] = Part(stream.dataset(pa.concat_tables(stream.tables())), place)
    return parts


def _shifted(locate: Locate, start: int) -> Locate:
    return lambda row: locate(start + row)


def _cast_column(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    position = table.column_names.index(name)
    column = table.column(position)
    return table if column.type == kind else table.set_column(position, name, column.cast(kind))
