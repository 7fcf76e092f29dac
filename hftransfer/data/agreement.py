"""Whether the columns of a row agree: a tag for every word, answers that stand in their context, a known choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hftransfer.data.kinds import is_list, is_text, is_text_list, refuse_rows
from hftransfer.data.records import Locate
from hftransfer.errors import DataError
from hftransfer.recipe import MAX_CHOICES, MIN_CHOICES, DataSection, TaskSection
from hftransfer.setting_values import listed_columns

Columns = Callable[[str], pa.ChunkedArray]


def check_agreement(column_of: Columns, section: DataSection, task: TaskSection, where: str, locate: Locate) -> None:
    """Check the label column against the input columns, each of which holds what it should.

    Raises:
        DataError: The message names the first row that does not agree.
    """
    for name, kinds in task.label_columns(section).items():
        for kind in kinds:
            check = _CHECKS.get(kind)
            if check is not None:
                check(column_of, name, section, where, locate)


def _tags(column_of: Columns, name: str, section: DataSection, where: str, locate: Locate) -> None:
    words, tags = column_of(section.text), column_of(name)
    if is_text_list(words.type) and is_list(tags.type):
        fix = "give one tag per word"
        mask = pc.not_equal(pc.list_value_length(words), pc.list_value_length(tags))
        refuse_rows(mask, f"not as many tags in column {name!r} as words in {section.text!r}", where, locate, fix)


def _spans(column_of: Columns, name: str, section: DataSection, where: str, locate: Locate) -> None:
    texts, spans = column_of(section.text), column_of(name)
    if is_text_list(texts.type) and is_list(spans.type) and pa.types.is_struct(spans.type.value_type):
        what = f"column {name!r} holds spans, which count characters of raw text, but {section.text!r} holds words"
        raise DataError(what, where=where, fix="give one tag per word, or each text as one string")
    if not is_text(texts.type) or not is_list(spans.type):
        return
    for row, (text, marked) in enumerate(zip(_values(texts), _values(spans), strict=True)):
        for span in marked:
            start, end = span["start"], span["end"]
            if span.get("label") is None or not str(span["label"]).strip():
                what = f"the span {start} to {end} in column {name!r} has no label"
                raise DataError(what, where=f"{where}, {locate(row)}", fix="give it one, or leave it out")
            if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
                raise DataError(
                    f"the span {start} to {end} does not lie in a text of {len(text)} characters",
                    where=f"{where}, {locate(row)}",
                    fix="count characters from 0, the end not included",
                )


def _answers(column_of: Columns, name: str, section: DataSection, where: str, locate: Locate) -> None:
    if section.text_pair is None:
        return
    contexts, golds = column_of(section.text_pair), column_of(name)
    for row, (context, gold) in enumerate(zip(_values(contexts), _values(golds), strict=True)):
        for record in gold if isinstance(gold, list) else [gold]:
            texts, starts = record["text"], record["answer_start"]
            texts, starts = ([part] if not isinstance(part, list) else part for part in (texts, starts))
            if len(texts) != len(starts):
                what = f"{len(texts)} answers and {len(starts)} places in column {name!r}"
                raise DataError(what, where=f"{where}, {locate(row)}", fix="give every answer its answer_start")
            for text, start in zip(texts, starts, strict=True):
                if text and (not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text):
                    raise DataError(
                        f"the context has no {text[:40]!r} at {start}",
                        where=f"{where}, {locate(row)}",
                        fix="answer_start counts characters from 0",
                    )


def _index(column_of: Columns, name: str, section: DataSection, where: str, locate: Locate) -> None:
    names = listed_columns(section.text_pair)
    if not names:
        return
    label, count = column_of(name), pa.scalar(len(names))
    if len(names) == 1:
        count = pc.list_value_length(column_of(names[0]))
        few = pc.or_(pc.less(count, MIN_CHOICES), pc.greater(count, MAX_CHOICES))
        fix = f"give {MIN_CHOICES} to {MAX_CHOICES} choices"
        refuse_rows(few, f"too few or too many choices in column {names[0]!r}", where, locate, fix)
    beyond = pc.greater_equal(label, count)
    refuse_rows(beyond, f"there is no such choice as {name!r} says", where, locate, "count the choices from 0")


def _texts(column_of: Columns, name: str, section: DataSection, where: str, locate: Locate) -> None:
    column = column_of(name)
    if is_list(column.type):
        empty = pc.equal(pc.list_value_length(column), 0)
        refuse_rows(empty, f"no right output in column {name!r}", where, locate)


def _values(column: pa.ChunkedArray) -> Iterator[Any]:
    """The values of a column, a few at a time."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), 1024):
            yield from chunk.slice(start, 1024).to_pylist()


_CHECKS: dict[str, Callable[[Columns, str, DataSection, str, Locate], None]] = {
    "tags": _tags,
    "spans": _spans,
    "answers": _answers,
    "index": _index,
    "texts": _texts,
}
