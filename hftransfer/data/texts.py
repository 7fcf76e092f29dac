"""Texts alone, from any file with a text column or from a plain text file with one text a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from hftransfer.data.batching import random_order
from hftransfer.data.check import column_of
from hftransfer.data.kinds import is_text, is_text_list
from hftransfer.data.load import load_file
from hftransfer.data.named import check_exists, check_present
from hftransfer.data.readers import read_lines
from hftransfer.errors import DataError

PLAIN_SUFFIX, PLAIN_COLUMN = ".txt", "text"
STREAM = 72
"""Keeps the draw of texts apart from other draws of the same seed."""


@dataclass(frozen=True)
class Texts:
    """Texts of one source.

    Attributes:
        where: What error messages call it.
        texts: Those that are not blank.
        labels: The label of each, where a label column was named and the file has it.
        blank: How many were blank and left out.
        total: How many there were before a sample was drawn, blank ones left out.
    """

    where: str
    texts: list[str]
    labels: list[Any] | None = None
    blank: int = 0
    total: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    def sample(self, most: int, seed: int) -> Texts:
        """At most so many of them, at random, in their order."""
        if len(self) <= most:
            return self
        return self.take(sorted(random_order(len(self), seed, STREAM)[:most].tolist()))

    def take(self, places: Sequence[int]) -> Texts:
        """Those at these places."""
        labels = None if self.labels is None else [self.labels[at] for at in places]
        return replace(self, texts=[self.texts[at] for at in places], labels=labels)

    def distinct(self) -> Texts:
        """Each text once, whatever its case."""
        first: dict[str, int] = {}
        for place, text in enumerate(self.texts):
            first.setdefault(" ".join(text.lower().split()), place)
        return self.take(list(first.values()))


def read_texts(path: str, where: str, column: str = PLAIN_COLUMN, label: str | None = None) -> Texts:
    """Read the texts of a file.

    Args:
        path: A .txt file with one text a line, a csv, tsv, json, jsonl or parquet file, or a saved data set.
        where: What the path was given as, such as "--texts"; starts error messages.
        column: The text column, strings or lists of words; a .txt file has none.
        label: The label column; a file without it has texts alone.

    Raises:
        DataError: The file cannot be read, has no such column, or no text.
    """
    file, place = check_exists(path, where), f"{where} ({path})"
    if file.suffix.lower() == PLAIN_SUFFIX and file.is_file():
        lines = read_lines(file, place)
        return _not_empty(Texts(place, lines, None, 0, len(lines)))
    dataset = load_file(path, where=where)
    check_present(dataset.column_names, [column], place)
    found = column_of(dataset, column)
    if not (is_text(found.type) or is_text_list(found.type) or pa.types.is_null(found.type)):
        raise DataError(f"column {column!r} holds {found.type}, not texts", where=place, fix="name the text column")
    values = [value if isinstance(value, str) else " ".join(map(str, value or ())) for value in found.to_pylist()]
    kept = [row for row, value in enumerate(values) if value.strip()]
    labels = dataset[label][:] if label is not None and label in dataset.column_names else None
    texts = Texts(place, values, labels, len(values) - len(kept), len(kept)).take(kept)
    return _not_empty(texts)


def has_column(path: str, column: str) -> bool:
    """Whether a file that `read_texts` reads has this column; a .txt file has none."""
    return Path(path).suffix.lower() != PLAIN_SUFFIX and column in load_file(path, where=path).column_names


def _not_empty(texts: Texts) -> Texts:
    if not len(texts):
        raise DataError("no texts", where=texts.where, fix="give a file with at least one text")
    return texts
